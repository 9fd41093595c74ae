"""A picture file becomes an upright 8-bit RGB picture, or an error that names the file and the reason."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""What is decoded, whatever the file is called. Not all that Pillow knows: its EPS reader, for one, starts a program."""

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""What a folder of pictures is searched for, in small or capital letters."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation; 1 is upright."""


class UnreadableImage(UserError):
    """The file is there and can be read, but what it holds cannot be decoded as a picture."""


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Return the picture, turned upright by its EXIF orientation, in mode RGB.

    Grey, palette and CMYK pictures are converted; 16-bit grey is scaled, not clipped; transparent parts lie over white; of
    several frames the first is taken.

    Raises:
        UnreadableImage: what the file holds cannot be decoded.
        UserError: the file itself cannot be read (missing, a folder, no permission, a failing disk).
    """
    content = _read(Path(path))
    if not content:
        raise UnreadableImage(f"{path}: not a picture: the file is empty (0 bytes).")
    try:
        return _decode(content)
    except Image.UnidentifiedImageError:
        reason = f"not a picture in a known format ({', '.join(FORMATS)})"
    except Image.DecompressionBombError as error:
        reason = f"too large to be decoded safely: {error}"
    except MemoryError:
        raise
    except Exception as error:  # decoders fail on damaged files with nearly every type there is
        reason = f"the picture is damaged or of an unsupported kind: {str(error).strip() or type(error).__name__}"
    raise UnreadableImage(f"{path}: {reason.rstrip('.')}.") from None


def _read(path: Path) -> bytes:
    """Return the file's content. Apart from decoding, so that a failing disk is never taken for a bad picture."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path}: there is no such file.{did_you_mean(path.name, siblings)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, where the file of a picture is expected.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _decode(content: bytes) -> Image.Image:
    """Decode and convert, without a word about oddities that do no harm (ImageNet has pictures with damaged metadata)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
            return _to_rgb(_turn_upright(image))


def _turn_upright(image: Image.Image) -> Image.Image:
    """Undo the EXIF orientation. Damaged metadata is no reason to refuse a picture."""
    try:
        method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return image
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB. Raises ValueError for values of unknown range, and where Pillow has no conversion."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Return wide grey values as mode L: integers are taken as 16 bits (0..65535), floats as 0..1."""
    values = np.asarray(image, dtype=np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= top):
        raise ValueError(f"grey values from {values.min():g} to {values.max():g}, where 0 to {top:g} are expected")
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
