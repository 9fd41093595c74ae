"""The images of a page: each file once, and no more than the page may hold."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from stvit_cli.data.thumbnails import image_kind
from stvit_cli.tasks.report_parts import GalleryPart, MatrixPart, ShownImage

MAX_BYTES = 7_500_000
"""Of all images of a page, as text: with the tables of 1000 classes the page then stays under 10 MB."""


class PageImages:
    """Collects images until the page is full.

    Args:
        max_bytes: how long their text may be.

    Attributes:
        files: what the page's script gets: source and size of each file.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.left = max_bytes
        self.files: list[dict[str, Any]] = []
        self._index: dict[bytes, int] = {}

    def gallery(self, part: GalleryPart) -> list[dict[str, Any]]:
        """Return the images of a gallery that the page has room for."""
        return [shown for image in part.images if (shown := self._add(image)) is not None]

    def cells(self, part: MatrixPart) -> dict[str, list[dict[str, Any]]]:
        """Return the images of a matrix's cells that the page has room for: first one of each cell, then a second, and so on."""
        found: dict[str, list[dict[str, Any]]] = {}
        deepest = max(map(len, part.images.values()), default=0)
        for depth in range(deepest):
            for (row, column), images in part.images.items():
                shown = self._add(images[depth]) if depth < len(images) else None
                if shown is not None:
                    found.setdefault(f"{row},{column}", []).append(shown)
        return found

    def _add(self, image: ShownImage) -> dict[str, Any] | None:
        """Return an image for the page's script; None where the page has no room for its files."""
        wanted = {hashlib.sha256(file.data).digest(): file.data for file in image.thumbnails}
        cost = sum(len(data) * 4 // 3 + 80 for digest, data in wanted.items() if digest not in self._index)
        if cost > self.left:
            return None
        self.left -= cost
        for digest, data in wanted.items():
            if digest not in self._index:
                self._index[digest] = len(self.files)
                self.files.append(_file(data))
        thumbnails = [[self._index[hashlib.sha256(file.data).digest()], file.label] for file in image.thumbnails]
        return {"name": image.name, "thumbnails": thumbnails, "caption": list(image.caption), "wrong": image.is_wrong}


def _file(data: bytes) -> dict[str, Any]:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    return {"data": f"data:{image_kind(data)};base64,{base64.b64encode(data).decode()}", "width": width, "height": height}


def count_text(shown: int, total: int | None) -> str:
    """Return how many images a gallery shows.

    >>> count_text(24, 1300)
    '24 of 1300 images'
    """
    of = shown if total is None else total
    return f"{shown} image{'s' * (shown != 1)}" if of == shown else f"{shown} of {of} images"


def shown_of(shown: Mapping[str, Sequence[object]], part: MatrixPart) -> str:
    """Return how many images the cells of a matrix show; empty where there are none."""
    number, given = sum(map(len, shown.values())), sum(map(len, part.images.values()))
    if not given:
        return ""
    full = "" if number == given else f" ({given - number} more would make the page too large)"
    return f"Click a cell to see its images: {number} are in the page{full}."
