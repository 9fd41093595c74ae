"""Label maps drawn on images at their own size, to be looked at and kept: a colour for each class, and a legend that names them.

For the small images of a report see `tasks.segmentation.drawing`. H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stvit_cli.data.drawing import enlarged, load_font, write_text
from stvit_cli.data.palette import Colour, class_colour
from stvit_cli.data.segmentation_transforms import IGNORED
from stvit_cli.utils.text import printable, shortened

OPACITY = 0.5
LONGEST_NAME = 40
NUM_IN_LEGEND = 30
"""Classes in a legend, those with the largest areas."""

_UNKNOWN = (128, 128, 128)
"""The colour of pixels without a class."""


def overlay(image: Image.Image, classes: NDArray[np.integer]) -> Image.Image:
    """Return an image with the colours of its classes blended into it; pixels without a class are grey.

    Args:
        image: in mode RGB.
        classes: of each pixel, (H, W); `IGNORED` where there is none.
    """
    largest = int(classes.max(initial=0))
    colours = np.array([*(class_colour(index) for index in range(largest + 1)), _UNKNOWN], dtype=np.float32)
    of_pixel = colours[np.where(classes == IGNORED, largest + 1, classes)]
    blended = (1 - OPACITY) * np.asarray(image, dtype=np.float32) + OPACITY * of_pixel
    return Image.fromarray(blended.astype(np.uint8))


def with_legend(image: Image.Image, entries: Sequence[tuple[int, str]]) -> Image.Image:
    """Return an image with a legend on its right: the colours of classes and their names.

    Args:
        image: a tiny one is enlarged.
        entries: class and text, by descending interest.
    """
    image = enlarged(image)
    size = max(12, min(image.height // 24, 20))
    font, line = load_font(size, *(text for _, text in entries)), int(1.5 * size)
    more = [(None, f"and {len(entries) - NUM_IN_LEGEND} more")] if len(entries) > NUM_IN_LEGEND else []
    rows: list[tuple[int | None, str]] = [*entries[:NUM_IN_LEGEND], *more]
    width = 2 * line + int(max((font.getlength(printable(text)) for _, text in rows), default=0))
    canvas = Image.new("RGB", (image.width + width, max(image.height, line * len(rows) + line // 2)), "white")
    canvas.paste(image)
    pen = ImageDraw.Draw(canvas)
    for number, (label, text) in enumerate(rows):
        left, top = image.width + line // 2, line // 4 + number * line
        if label is not None:
            pen.rectangle((left, top + 2, left + size, top + 2 + size), fill=_colour(label), outline="black")
        write_text(pen, (left + line, top), text, "black", font)
    return canvas


def legend(classes: NDArray[np.integer], class_names: Sequence[str]) -> list[tuple[int, str]]:
    """Return the classes of a label map with their shares of its pixels, in descending order, for `with_legend`.

    >>> legend(np.array([[0, 1], [1, 1]]), ["sky", "sea"])
    [(1, 'sea  75.0%'), (0, 'sky  25.0%')]
    """
    found, counts = np.unique(classes, return_counts=True)
    pairs = sorted(zip(found.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])
    return [(label, legend_text(_name(label, class_names), count / classes.size)) for label, count in pairs]


def legend_text(name: str, share: float) -> str:
    """Return what a legend says of a class: its name, shortened where it is long, and its share of the pixels."""
    return f"{shortened(name, LONGEST_NAME)}  {share:.1%}"


def palette(classes: Iterable[tuple[int, int]]) -> list[int]:
    """Return the palette of a PNG file of label maps, red, green and blue of 256 numbers; grey where a number is no class.

    Args:
        classes: the number of a class in label maps, and its index.
    """
    colours: list[Colour] = [(number, number, number) for number in range(256)]
    for number, label in classes:
        if number < 256:
            colours[number] = class_colour(label)
    return [channel for colour in colours for channel in colour]


def _colour(label: int) -> Colour:
    return _UNKNOWN if label == IGNORED else class_colour(label)


def _name(label: int, class_names: Sequence[str]) -> str:
    return "ignored" if label == IGNORED else class_names[label]
