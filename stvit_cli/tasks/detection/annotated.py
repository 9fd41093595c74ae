"""Objects drawn on an image at its own size, to be looked at and kept: a colour for each class, names that can be read.

For the small images of a report see `tasks.detection.drawing`. H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stvit_cli.data.coco import decode_mask
from stvit_cli.data.drawing import enlarged, enlargement, font_for, write_text
from stvit_cli.data.palette import Colour, class_colour, text_colour
from stvit_cli.utils.text import printable, shortened

MASK_OPACITY = 0.45
LONGEST_NAME = 28

Box = tuple[float, float, float, float]
Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """An object to draw.

    Attributes:
        label: class, from 0; it gives the colour.
        box: left, top, right and bottom in pixels of the image.
        text: its name, and its score where it has one.
        mask: COCO's run-length code; None: the box alone.
    """

    label: int
    box: Box
    text: str
    mask: dict[str, Any] | None = None


def object_text(name: str, score: float | None = None) -> str:
    """Return what is written beside an object: its name, shortened where it is long, and its score.

    >>> object_text("cat", 0.934)
    'cat 93 %'
    """
    name = shortened(name, LONGEST_NAME)
    return name if score is None else f"{name} {100 * score:.0f} %"


def annotated(image: Image.Image, objects: Sequence[Annotation]) -> Image.Image:
    """Return an image with objects drawn on it.

    Names are placed where no other one is, those of the first objects first. Where there is no room left, an object has its box
    and its colour alone.

    Args:
        image: in mode RGB; a tiny one is enlarged.
        objects: by descending score; the first are drawn on top.
    """
    if any(drawn.mask is not None for drawn in objects):
        image = _with_masks(image, objects)
    canvas, factor = enlarged(image).copy(), enlargement(image)
    pen, (font, size) = ImageDraw.Draw(canvas), font_for(canvas, 40, 11, *(drawn.text for drawn in objects))
    width = max(2, size // 7)
    boxes = [_clipped(drawn.box, factor, canvas.size) for drawn in objects]
    for drawn, box in zip(reversed(objects), reversed(boxes), strict=True):
        _outline(pen, box, class_colour(drawn.label), width)
    names = [(drawn.text, box, class_colour(drawn.label)) for drawn, box in zip(objects, boxes, strict=True)]
    write_names(pen, font, names, canvas.size, outlined=True)
    return canvas


def _clipped(box: Box, factor: int, size: tuple[int, int]) -> Box:
    """Return a box in pixels of the canvas, within it and at least a pixel wide."""
    left, right = (min(max(side * factor, 0), size[0] - 1) for side in (box[0], box[2]))
    top, bottom = (min(max(side * factor, 0), size[1] - 1) for side in (box[1], box[3]))
    return left, top, max(left, right), max(top, bottom)


def _outline(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int) -> None:
    """Draw a box with a thin line of the opposite lightness around it, so that it is seen on a background of its own colour."""
    left, top, right, bottom = box
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=text_colour(colour))
    pen.rectangle(box, outline=colour, width=width)


def _positions(box: Box, size: tuple[float, float], room: tuple[int, int]) -> Iterator[tuple[float, float]]:
    """Yield where a name can stand: above the box, in it, below it, at its right side; and along these edges."""
    (left, top, right, bottom), (width, height) = box, size
    for x in (left, right - width, (left + right - width) / 2):
        for y in (top - height, top, bottom - height, bottom):
            yield min(max(x, 0), room[0] - width), y
    yield right, top
    yield left - width, top
    for step in range(1, 5):
        yield left, top + step * height


def write_names(
    pen: ImageDraw.ImageDraw, font: Any, names: Iterable[tuple[str, Box, Colour]], room: tuple[int, int], *, outlined: bool
) -> None:
    """Write names beside their objects, each on a band of its colour that covers no earlier one; left out where there is no room.

    Args:
        pen: of the image.
        font: that they are written in.
        names: text, box of the object (left, top, right and bottom) and colour.
        room: width and height of the image.
        outlined: draw a thin line around the bands.
    """
    taken: list[Rectangle] = []
    for text, box, colour in names:
        text = printable(text)
        band = _free_band(pen, text, font, box, room, taken)
        if band is not None:
            taken.append(band)
            _write(pen, text, font, band, colour, text_colour(colour) if outlined else None)


def _free_band(
    pen: ImageDraw.ImageDraw, text: str, font: Any, box: Box, room: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle | None:
    """Return the first position of a name within the image where no other band is; None where there is none."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 5, bottom - top + 5
    for x, y in _positions(box, (width, height), room):
        if x < 0 or y < 0 or x + width > room[0] or y + height > room[1]:
            continue
        if all(x >= end or x + width <= start or y >= below or y + height <= above for start, above, end, below in taken):
            return x, y, x + width, y + height
    return None


def _write(pen: ImageDraw.ImageDraw, text: str, font: Any, band: Rectangle, colour: Colour, outline: str | None) -> None:
    left, top, _, _ = pen.textbbox((0, 0), text, font=font)
    pen.rectangle((band[0], band[1], band[2] - 1, band[3] - 1), fill=colour, outline=outline)
    write_text(pen, (band[0] + 2 - left, band[1] + 2 - top), text, text_colour(colour), font)


def _with_masks(image: Image.Image, objects: Sequence[Annotation]) -> Image.Image:
    """Return the image with masks blended into it, each with its outline; the first objects last."""
    pixels = np.array(image, dtype=np.uint8)
    for drawn in reversed(objects):
        if drawn.mask is not None:
            inside = decode_mask(drawn.mask, image.height, image.width).astype(bool)
            colour: NDArray[np.float32] = np.array(class_colour(drawn.label), dtype=np.float32)
            pixels[inside] = ((1 - MASK_OPACITY) * pixels[inside] + MASK_OPACITY * colour).astype(np.uint8)
            pixels[inside & ~_eroded(inside)] = colour.astype(np.uint8)
    return Image.fromarray(pixels)


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask (H, W) without the pixels at its edge."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return inner
