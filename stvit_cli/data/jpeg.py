"""JPEG files decoded by simplejpeg, which needs two thirds of Pillow's time: libjpeg-turbo's own interface, without copies.

Both decode by libjpeg-turbo with the same settings (accurate DCT, fancy upsampling), so the pixels are the same; that is checked
for the installed versions before the first file. Whatever is not an ordinary JPEG file is left to Pillow, which also says what is
wrong with damaged ones: orientations to undo, CMYK, 12 bits, warnings of the decoder, sizes that are suspicious.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import numpy as np
from PIL import ExifTags, Image

from stvit_cli.data.pixels import Pixels
from stvit_cli.utils.environment import is_installed
from stvit_cli.utils.text import first_line

logger = logging.getLogger(__name__)

_START = b"\xff\xd8\xff"
_APP1, _SCAN = 0xE1, 0xDA
_EXIF = b"Exif\0\0"


def decode_jpeg(content: bytes) -> Pixels | None:
    """Return the pixels (H, W, 4) of an upright JPEG file; None for anything that Pillow has to decode, and without simplejpeg.

    >>> file = io.BytesIO()
    >>> Image.new("RGB", (3, 2)).save(file, "JPEG")
    >>> pixels = decode_jpeg(file.getvalue())
    >>> pixels is None or pixels.shape == (2, 3, 4)
    True
    """
    if not content.startswith(_START):
        return None
    simplejpeg = _decoder()
    if simplejpeg is None:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        if colors not in ("YCbCr", "Gray") or not _is_upright(content) or width * height > (Image.MAX_IMAGE_PIXELS or 1 << 62):
            return None
        decoded: Pixels = simplejpeg.decode_jpeg(content, "RGBX")
    except MemoryError:
        raise
    except Exception:  # Pillow decodes it in spite of a warning, or says why not
        return None
    return decoded


def why_not() -> str | None:
    """Return why Pillow decodes JPEG files, in a line; None where simplejpeg does."""
    if _decoder() is not None:
        return None
    if not is_installed("simplejpeg"):
        return "simplejpeg is not installed: pip install 'stvit[jpeg]'"
    try:
        import simplejpeg  # noqa: F401
    except Exception as error:
        return f"simplejpeg cannot be imported ({type(error).__name__}: {first_line(error)})"
    return "simplejpeg decodes to other pixels than this Pillow"


@cache
def _decoder() -> ModuleType | None:
    """Return simplejpeg, None where it is not installed or decodes to other pixels than this Pillow."""
    try:
        import simplejpeg
    except Exception as error:  # not there, made for another numpy, or damaged
        if not isinstance(error, ModuleNotFoundError):
            logger.info(f"JPEG files are decoded by Pillow: simplejpeg cannot be imported: {error}")
        return None
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (37, 45, 3)).astype(np.uint8))
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        file = io.BytesIO()
        noise.save(file, "JPEG", quality=80, subsampling=subsampling)
        with Image.open(file) as image:
            expected = np.asarray(image)
        if not np.array_equal(simplejpeg.decode_jpeg(file.getvalue()), expected):
            logger.info("JPEG files are decoded by Pillow: simplejpeg decodes them to other pixels.")
            return None
    module: ModuleType = simplejpeg
    return module


def _is_upright(content: bytes) -> bool:
    """Whether no metadata says that the image has to be turned. Raises an exception where they cannot be read."""
    found = [segment for segment in _segments(content) if segment.startswith(_EXIF) or b"rientation" in segment]
    if not found:
        return True
    if len(found) > 1 or not found[0].startswith(_EXIF):
        return False
    exif = Image.Exif()
    exif.load(found[0])
    return bool(exif.get(ExifTags.Base.Orientation, 1) == 1)


def _segments(content: bytes) -> Iterator[bytes]:
    """Yield the contents of the APP1 segments, where EXIF and XMP data are. Raises IndexError where a header ends early."""
    position = 2
    while content[position] == 0xFF and content[position + 1] != _SCAN:
        if content[position + 1] == 0xFF:  # a fill byte
            position += 1
            continue
        kind, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4], "big")
        if kind == _APP1:
            yield content[position + 4 : position + 2 + length]
        position += 2 + max(length, 2)
