"""Boxes and masks drawn on small images: a colour for each class. H W rows and columns of an image, N objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from stvit_cli.data.coco import decode_mask
from stvit_cli.data.drawing import load_font, write_text
from stvit_cli.data.palette import class_colour, text_colour
from stvit_cli.tasks.detection.annotated import Rectangle, place_name
from stvit_cli.utils.text import printable, shortened

SIDE = 320
"""Longer side of a drawing in pixels: enlarged, boxes and names can be read."""

MASK_OPACITY = 0.45
LONGEST_NAME = 34


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

    No name covers another: where there is no place left, those of the first objects are left out.

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
    pen, font = ImageDraw.Draw(small), load_font(11, *(drawn.text for drawn in objects))
    factors = np.array([small.width / image.width, small.height / image.height] * 2)
    boxes = [np.array(drawn.box, dtype=np.float64) * factors for drawn in objects]
    for drawn, (left, top, width, height) in zip(objects, boxes, strict=True):
        corners = (left, top, left + max(width - 1, 1), top + max(height - 1, 1))
        pen.rectangle(corners, outline=class_colour(drawn.label), width=1 if drawn.is_faint else 2)
    taken: list[Rectangle] = []
    for drawn, (left, top, width, height) in zip(reversed(objects), reversed(boxes), strict=True):
        text = shortened(printable(drawn.text), LONGEST_NAME)
        box = (max(left, 0), max(top, 0), min(left + width, small.width), min(top + height, small.height))
        band = place_name(pen, text, font, box, small.size, taken) if text else None
        if band is not None:
            taken.append(band)
            _write(pen, text, font, band, class_colour(drawn.label))
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


def _write(pen: ImageDraw.ImageDraw, text: str, font: Any, band: Rectangle, colour: tuple[int, int, int]) -> None:
    left, top, _, _ = pen.textbbox((0, 0), text, font=font)
    pen.rectangle((band[0], band[1], band[2] - 1, band[3] - 1), fill=colour)
    write_text(pen, (band[0] + 2 - left, band[1] + 2 - top), text, text_colour(colour), font)
