"""Helpers to draw predictions: readable font sizes, escaped text, and atomic PNG files."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stvit_cli.utils.files import replacing, writing
from stvit_cli.utils.text import printable

SMALLEST_SIDE = 320
"""Pixels; an image whose longer side is shorter is enlarged by a whole number before it is drawn on."""
MAX_STEM = 200  # bytes of a file name; most file systems take 255, and a number and an ending come on top


def load_font(size: int, *texts: str) -> Any:
    """Return a font of a size in pixels for texts: Pillow's own where they are ASCII, which is all that it has.

    DejaVu, which comes with matplotlib, has the letters of Europe beside.
    """
    file = None if all(map(str.isascii, texts)) else _dejavu()
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


@cache
def _dejavu() -> Path | None:
    found = importlib.util.find_spec("matplotlib")  # without importing it, which takes a second
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return file if file.is_file() else None


def font_for(image: Image.Image, per_width: int, smallest: int, *texts: str) -> tuple[Any, int]:
    """Return a font and its size in pixels: the image's width divided by ``per_width``, at least ``smallest``.

    The width counts up to four times the height: the font size of a very wide image would exhaust the memory. The font has the
    letters of the texts, see `load_font`.
    """
    size = max(smallest, min(image.width, 4 * image.height) // per_width)
    return load_font(size, *texts), size


def enlargement(image: Image.Image) -> int:
    """Return the whole number by which `enlarged` enlarges an image; 1 for all but tiny ones."""
    return max(1, SMALLEST_SIDE // max(image.size))


def enlarged(image: Image.Image) -> Image.Image:
    """Return a tiny image enlarged without smoothing, so that names and lines fit; any other as it is."""
    factor = enlargement(image)
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST) if factor > 1 else image


def fitted(image: Image.Image, side: int) -> Image.Image:
    """Return a copy of an image with a longer side of ``side`` pixels; a smaller one is enlarged without smoothing."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST, reducing_gap=3.0)


def resampled(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return an array (H, W), such as a mask or a label map, at a width and height in pixels, without interpolation.

    >>> resampled(np.array([[1, 2]]), (4, 1)).tolist()
    [[1, 1, 2, 2]]
    """
    height, width = array.shape
    rows, columns = np.arange(size[1]) * height // size[1], np.arange(size[0]) * width // size[0]
    return array[np.ix_(rows, columns)]


def write_text(pen: ImageDraw.ImageDraw, position: tuple[float, float], text: str, fill: str, font: Any) -> None:
    """Draw a line of text; control characters in it, such as those of a class name, are escaped."""
    pen.text(position, printable(text), fill=fill, font=font)


def side_by_side(parts: Sequence[tuple[str, Image.Image]], caption: Sequence[str] = ()) -> Image.Image:
    """Return images beside each other, each with its title above, such as truth and prediction, and lines of text below.

    Args:
        parts: titles and images.
        caption: the lines.
    """
    tallest = max(image.height for _, image in parts)
    font, size = font_for(max((image for _, image in parts), key=lambda image: image.width), 30, 13, *caption)
    band, gap = int(1.7 * size), max(4, size // 2)
    head = band if any(title for title, _ in parts) else 0
    titles = [max(image.width, int(font.getlength(title)) + 2 * gap) for title, image in parts]
    lines = [part for line in caption for part in _broken(printable(line), font, sum(titles) + gap * (len(parts) - 1) - 2 * gap)]
    height = head + tallest + (band * len(lines) + gap if lines else 0)
    canvas = Image.new("RGB", (sum(titles) + gap * (len(parts) - 1), height), "white")
    pen, left = ImageDraw.Draw(canvas), 0
    for (title, image), width in zip(parts, titles, strict=True):
        write_text(pen, (left + gap, (band - size) // 3), title, "black", font)
        canvas.paste(image, (left, head))
        left += width + gap
    for number, line in enumerate(lines):
        write_text(pen, (gap, head + tallest + gap + number * band), line, "black", font)
    return canvas


def _broken(line: str, font: Any, room: float) -> list[str]:
    """Return the parts of a line that fit into a width in pixels, broken between words."""
    parts = [""]
    for word in line.split(" "):
        longer = f"{parts[-1]} {word}".strip()
        if parts[-1] and font.getlength(longer) > room:
            parts.append(word)
        else:
            parts[-1] = longer
    return parts


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
