"""What drawn predictions share: letters of a readable size, escaped text, and files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from stvit_cli.utils.files import replacing, writing
from stvit_cli.utils.text import printable

MAX_STEM = 200  # bytes of a file name; most file systems take 255, and a number and an ending come on top


def font_for(image: Image.Image, per_width: int, smallest: int) -> tuple[Any, int]:
    """Return a font and its size in pixels: ``per_width`` lines as high as the image is wide, ``smallest`` at least.

    A very wide image counts as four times as wide as high: letters of a size by its width alone would fill the memory.
    """
    size = max(smallest, min(image.width, 4 * image.height) // per_width)
    return ImageFont.load_default(size), size


def write_text(pen: ImageDraw.ImageDraw, position: tuple[float, float], text: str, fill: str, font: Any) -> None:
    """Write a line; control characters in it, such as those of a class name, are shown and not obeyed."""
    pen.text(position, printable(text), fill=fill, font=font)


def save_png(image: Image.Image, target: Path) -> None:
    """Write an image as PNG, in a folder that is made where it is missing.

    Raises:
        UserError: it cannot be written; nothing is left half-written.
    """
    with writing(target, advice=""):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as aside:
            image.save(aside, "PNG")


def drawn_name(number: int, path: Path) -> str:
    """Return the name of the drawn copy of an image: numbered, as images of several folders may be called the same."""
    stem = path.stem
    while len(os.fsencode(stem)) > MAX_STEM:
        stem = stem[:-1]
    return f"{number:05d}-{stem}.png"
