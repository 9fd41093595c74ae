"""Helpers to draw predictions: readable font sizes, escaped text, and atomic PNG files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from stvit_cli.utils.files import replacing, writing
from stvit_cli.utils.text import printable

MAX_STEM = 200  # bytes of a file name; most file systems take 255, and a number and an ending come on top


def font_for(image: Image.Image, per_width: int, smallest: int) -> tuple[Any, int]:
    """Return a font and its size in pixels: the image's width divided by ``per_width``, at least ``smallest``.

    The width counts up to four times the height: the font size of a very wide image would exhaust the memory.
    """
    size = max(smallest, min(image.width, 4 * image.height) // per_width)
    return ImageFont.load_default(size), size


def write_text(pen: ImageDraw.ImageDraw, position: tuple[float, float], text: str, fill: str, font: Any) -> None:
    """Draw a line of text; control characters in it, such as those of a class name, are escaped."""
    pen.text(position, printable(text), fill=fill, font=font)


def save_png(image: Image.Image, target: Path) -> None:
    """Write an image as PNG, creating its folder.

    Raises:
        UserError: it cannot be written; nothing is left half-written.
    """
    with writing(target, advice=""):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as unfinished:
            image.save(unfinished, "PNG")


def drawn_name(number: int, path: Path) -> str:
    """Return the file name of an image's visualization, numbered, as images in several folders may have the same name."""
    stem = path.stem
    while len(os.fsencode(stem)) > MAX_STEM:
        stem = stem[:-1]
    return f"{number:05d}-{stem}.png"
