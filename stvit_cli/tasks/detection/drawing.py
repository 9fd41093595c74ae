"""Boxes and masks drawn on small images: a colour for each class. H W rows and columns of an image, N objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from stvit_cli.data.coco import decode_mask
from stvit_cli.data.drawing import fitted, load_font, resampled
from stvit_cli.data.palette import class_colour
from stvit_cli.tasks.detection.annotated import MASK_OPACITY, write_names
from stvit_cli.utils.text import printable, shortened

SIDE = 320
"""Longer side of a drawing in pixels: enlarged, boxes and names can be read."""

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

    No name covers another: where there is no room left, those of the first objects are left out.

    Args:
        image: in mode RGB.
        objects: in pixels of the image.
        side: the longer side of the result in pixels; a smaller image is enlarged to it, so that lines are thin on it too.
    """
    small = fitted(image, side)
    if any(drawn.mask is not None for drawn in objects):
        small = _with_masks(small, image, objects)
    pen, font = ImageDraw.Draw(small), load_font(11, *(drawn.text for drawn in objects))
    factors = np.array([small.width / image.width, small.height / image.height] * 2)
    boxes = [np.array(drawn.box, dtype=np.float64) * factors for drawn in objects]
    for drawn, (left, top, width, height) in zip(objects, boxes, strict=True):
        corners = (left, top, left + max(width - 1, 1), top + max(height - 1, 1))
        pen.rectangle(corners, outline=class_colour(drawn.label), width=1 if drawn.is_faint else 2)
    names = []
    for drawn, (left, top, width, height) in zip(reversed(objects), reversed(boxes), strict=True):
        box = (max(left, 0), max(top, 0), min(left + width, small.width), min(top + height, small.height))
        if drawn.text:
            names.append((shortened(printable(drawn.text), LONGEST_NAME), box, class_colour(drawn.label)))
    write_names(pen, font, names, small.size, outlined=False)
    return small


def _with_masks(small: Image.Image, image: Image.Image, objects: Sequence[DrawnObject]) -> Image.Image:
    """Return the small image with masks, which are of the size of the large one, blended into it."""
    pixels = np.array(small, dtype=np.float32)
    for drawn in objects:
        if drawn.mask is None or drawn.is_faint:
            continue
        mask = drawn.mask if isinstance(drawn.mask, np.ndarray) else decode_mask(drawn.mask, image.height, image.width)
        inside = resampled(mask, small.size) > 0
        pixels[inside] = (1 - MASK_OPACITY) * pixels[inside] + MASK_OPACITY * np.array(class_colour(drawn.label), np.float32)
    return Image.fromarray(pixels.astype(np.uint8))
