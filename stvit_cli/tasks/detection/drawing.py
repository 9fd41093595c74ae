"""Boxes and masks drawn on small images: a colour for each class. H W rows and columns of an image, N objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stvit_cli.data.coco import decode_mask
from stvit_cli.data.drawing import write_text
from stvit_cli.data.palette import class_colour, text_colour
from stvit_cli.utils.text import shortened

SIDE = 320
"""Longer side of a drawing in pixels: enlarged, boxes and names can be read."""

MASK_OPACITY = 0.45
LONGEST_NAME = 24


@dataclass(frozen=True)
class DrawnObject:
    """An object to draw.

    Attributes:
        label: class, from 0; it gives the colour.
        box: left, top, width and height in pixels of the image.
        text: beside the box; empty: none.
        mask: COCO's run-length code, or an array (H, W); None: the box alone.
        is_faint: drawn with a thin line and no mask, as what does not count.
    """

    label: int
    box: Sequence[float]
    text: str = ""
    mask: Any = None
    is_faint: bool = False


def draw_objects(image: Image.Image, objects: Sequence[DrawnObject], side: int = SIDE) -> Image.Image:
    """Return a small copy of an image with objects drawn on it; the last are on top.

    Args:
        image: in mode RGB.
        objects: in pixels of the image.
        side: the longer side of the result in pixels; a smaller image is enlarged to it, so that lines are thin on it too.
    """
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST, reducing_gap=3.0)
    if any(drawn.mask is not None for drawn in objects):
        small = _with_masks(small, image, objects)
    pen, font = ImageDraw.Draw(small), ImageFont.load_default(11)
    factors = np.array([small.width / image.width, small.height / image.height] * 2)
    boxes = [np.array(drawn.box, dtype=np.float64) * factors for drawn in objects]
    for drawn, (left, top, width, height) in zip(objects, boxes, strict=True):
        corners = (left, top, left + max(width - 1, 1), top + max(height - 1, 1))
        pen.rectangle(corners, outline=class_colour(drawn.label), width=1 if drawn.is_faint else 2)
    for drawn, (left, top, _, _) in zip(objects, boxes, strict=True):
        if drawn.text:
            _write(pen, drawn, left, top, small.width, font)
    return small


def _with_masks(small: Image.Image, image: Image.Image, objects: Sequence[DrawnObject]) -> Image.Image:
    """Return the small image with masks, which are of the size of the large one, blended into it."""
    pixels = np.array(small, dtype=np.float32)
    rows = np.arange(small.height) * image.height // small.height
    columns = np.arange(small.width) * image.width // small.width
    for drawn in objects:
        if drawn.mask is None or drawn.is_faint:
            continue
        mask = drawn.mask if isinstance(drawn.mask, np.ndarray) else decode_mask(drawn.mask, image.height, image.width)
        inside = mask[np.ix_(rows, columns)] > 0
        pixels[inside] = (1 - MASK_OPACITY) * pixels[inside] + MASK_OPACITY * np.array(class_colour(drawn.label), np.float32)
    return Image.fromarray(pixels.astype(np.uint8))


def _write(pen: ImageDraw.ImageDraw, drawn: DrawnObject, left: float, top: float, room: int, font: Any) -> None:
    """Write the text of an object on a band of its colour, above the box or, at the top of the image, in it."""
    text = shortened(drawn.text, LONGEST_NAME)
    start, above, end, below = pen.textbbox((0, 0), text, font=font)
    width, height = end - start + 4, below - above + 4
    x = max(0.0, min(left, room - width))
    y = top - height if top >= height else top
    colour = class_colour(drawn.label)
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    write_text(pen, (x + 2 - start, y + 2 - above), text, text_colour(colour), font)
