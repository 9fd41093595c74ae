"""Label maps as small images. H W rows and columns, K classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stvit_cli.data.drawing import fitted, load_font, resampled, write_text
from stvit_cli.data.palette import class_colour, text_colour
from stvit_cli.data.segmentation_transforms import IGNORED, Labels
from stvit_cli.utils.text import shortened

SIDE = 240
"""Longer side of a drawing in pixels."""

OPACITY = 0.6
NAMED_SHARE = 0.02
PIXELS_TRIED = 200
RIGHT, WRONG = (70, 150, 90), (213, 60, 40)
"""Of an error map."""


def overlay(
    image: Image.Image, labels: Labels, opacity: float = OPACITY, class_names: Sequence[str] | None = None
) -> Image.Image:
    """Return an image with the colours of its classes blended into it; ignored pixels are hatched in grey.

    Args:
        image: in mode RGB.
        labels: the class of each pixel, (H, W); `IGNORED` where it has none.
        opacity: of the colours, 0 to 1.
        class_names: written on the classes that have at least `NAMED_SHARE` of the pixels; None: no names.
    """
    small, classes = _small(image, labels)
    known = classes != IGNORED
    colours = np.array([class_colour(index) for index in range(int(classes.max(initial=0)) + 1)], dtype=np.float32)
    pixels = np.asarray(small, dtype=np.float32).copy()
    pixels[known] = (1 - opacity) * pixels[known] + opacity * colours[classes[known]]
    drawn = Image.fromarray(_hatched(pixels, ~known))
    if class_names is not None:
        _write_names(drawn, classes, class_names)
    return drawn


def _write_names(drawn: Image.Image, classes: Labels, class_names: Sequence[str]) -> None:
    """Write the name of each larger class on a pixel of it, close to the middle of all its pixels, where no other name is."""
    pen, font = ImageDraw.Draw(drawn), load_font(11, *class_names)
    taken: list[tuple[int, int, int, int]] = []
    for index in np.unique(classes[classes != IGNORED]).tolist():
        pixels = np.argwhere(classes == index)
        if len(pixels) < NAMED_SHARE * classes.size:
            continue
        order = np.argsort(np.abs(pixels - pixels.mean(axis=0)).sum(axis=1), kind="stable")
        pixels = pixels[order[:: max(1, len(order) // PIXELS_TRIED)]]
        text, colour = shortened(class_names[index], 20), class_colour(index)
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        width, height = int(right - left) + 4, int(bottom - top) + 4
        bands = (_band(row, column, (width, height), drawn.size) for row, column in pixels.tolist())
        band = next((band for band in bands if not any(_overlap(band, other) for other in taken)), None)
        if band is None:
            continue
        taken.append(band)
        x, y = band[:2]
        pen.rectangle(band, fill=colour)
        write_text(pen, (x + 2 - left, y + 2 - top), text, text_colour(colour), font)


def _band(row: int, column: int, size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a name of a size (width, height) on a pixel, within the image."""
    x, y = (max(0, min(at - extent // 2, most - extent)) for at, extent, most in zip((column, row), size, room, strict=True))
    return x, y, x + size[0], y + size[1]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def error_map(image: Image.Image, target: Labels, predicted: Labels) -> Image.Image:
    """Return an image in grey with right pixels in green, wrong ones in red, and ignored ones hatched.

    Args:
        image: in mode RGB.
        target: true classes, (H, W); `IGNORED` where there is none.
        predicted: predicted classes, (H, W).
    """
    small, classes = _small(image.convert("L").convert("RGB"), target)
    found = resampled(predicted, small.size)
    pixels = np.asarray(small, dtype=np.float32).copy()
    known = classes != IGNORED
    for chosen, colour, opacity in ((known & (found == classes), RIGHT, 0.35), (known & (found != classes), WRONG, 0.75)):
        pixels[chosen] = (1 - opacity) * pixels[chosen] + opacity * np.array(colour, dtype=np.float32)
    return Image.fromarray(_hatched(pixels, ~known))


def _small(image: Image.Image, labels: Labels) -> tuple[Image.Image, Labels]:
    small = fitted(image, SIDE)
    return small, resampled(labels, small.size).astype(np.int32)


def _hatched(pixels: NDArray[np.float32], chosen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return pixels (H, W, 3) with diagonal grey lines where something is chosen."""
    rows, columns = np.indices(chosen.shape)
    lines = chosen & ((rows + columns) % 8 < 3)
    pixels[chosen] = 0.5 * pixels[chosen] + 0.5 * 128
    pixels[lines] = 60
    return np.clip(pixels, 0, 255).astype(np.uint8)
