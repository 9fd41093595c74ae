"""Thumbnails: small encoded images for a page that holds many of them."""

from __future__ import annotations

import io

from PIL import Image, features

SIDE = 160
"""Longer side of a thumbnail in pixels."""

QUALITY = 72
"""Of JPEG and WebP: with 160 pixels about 4 kB for a photo."""


def thumbnail(image: Image.Image, side: int = SIDE, quality: int = QUALITY, *, lossless: bool = False) -> bytes:
    """Return an image as a small file: of the formats that every browser shows, the one with the fewest bytes.

    Args:
        image: any image; it is left as it is.
        side: longer side of the result in pixels. A smaller image keeps its size: the page enlarges it.
        quality: of JPEG and WebP, 1 to 100.
        lossless: keep every pixel, as drawings of few colours (label maps, error maps) need. They are then reduced to pixels that
            they have, without a mixture of colours.

    Returns:
        A JPEG, PNG or WebP file; `image_kind` says which.

    Example:
        >>> data = thumbnail(Image.new("RGB", (640, 480), "red"))
        >>> Image.open(io.BytesIO(data)).size
        (160, 120)
    """
    small = image if image.mode == "RGB" else image.convert("RGB")
    if max(small.size) > side:
        scale = side / max(small.size)
        size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        small = small.resize(size, Image.Resampling.NEAREST if lossless else Image.Resampling.LANCZOS, reducing_gap=3.0)
    files = [_encoded(small, "PNG", optimize=True)] if lossless or max(small.size) <= 64 else []
    if features.check("webp"):
        files.append(_encoded(small, "WEBP", quality=quality, lossless=lossless, method=4))
    if not lossless:
        files.append(_encoded(small, "JPEG", quality=quality, optimize=True))
    return min(files, key=len)


def image_kind(data: bytes) -> str:
    r"""Return the media type of a JPEG, PNG or WebP file, from its first bytes.

    >>> image_kind(b"\x89PNG")
    'image/png'
    """
    if data.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if data[8:12] == b"WEBP" else "image/jpeg"


def _encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
