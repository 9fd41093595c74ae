"""Decoding of image files to upright 8-bit RGB images, or to an error with the file and the reason."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from stvit_cli.data.jpeg import decode_jpeg
from stvit_cli.data.pixels import MappedImage
from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling, reason_of
from stvit_cli.utils.machine_failures import machine_failure
from stvit_cli.utils.text import printable

ImageSource = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""An image: a file, an image of Pillow, or an RGB array of shape (H, W, 3)."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""Formats that are decoded, whatever the file name. Not all of Pillow's: its EPS reader, for one, starts a program."""

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""File name extensions of images in a folder; case is ignored."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that undoes each EXIF orientation; 1 is upright."""

_INVERSE = {
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
}
"""Inverse operations; each of the others is its own inverse."""

_ORIENTATION = "undone orientation"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTED_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""Keywords of the PNG texts in which Pillow looks for an EXIF orientation."""

_NOT_FILES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

# Pillow logs oddities, which Python would print without a handler.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class _WithoutWarnings:
    """`warnings.catch_warnings` for several threads at once: the filters come back when the last one leaves."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.caught.__exit__(None, None, None)


_WITHOUT_WARNINGS = _WithoutWarnings()


class UnreadableImageError(UserError):
    """The file can be read, but its content cannot be decoded as an image."""


def open_image(source: ImageSource) -> Image.Image:
    """Read an image in mode RGB, rotated upright by its EXIF orientation.

    Grey, palette and CMYK images are converted; 16-bit grey is scaled, not clipped; transparent pixels are blended with white;
    of several frames the first is read.

    Args:
        source: a file, whose content, not its name, decides about the format; an image of Pillow; or an RGB array (H, W, 3)
            of uint8.

    Returns:
        The image, 8 bits per channel.

    Raises:
        UnreadableImageError: what the file holds cannot be decoded, or the image has no conversion to RGB.
        UserError: the file itself cannot be read (missing, a folder, no permission, a failing disk), or the array has another
            shape or type.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decoded(lambda: _converted(source), image_name(source))
    name, content = printable(str(source)), _read(Path(source))
    if not content:
        raise UnreadableImageError(f"{name}: not an image: the file is empty (0 bytes).")
    return _decoded(lambda: _decode(content), name)


def decode_image(content: bytes, name: str) -> Image.Image:
    """Return the image that bytes hold, as `open_image` returns that of a file.

    Args:
        content: an encoded image, such as a JPEG file has.
        name: what messages call it.

    Raises:
        UnreadableImageError: it cannot be decoded.
    """
    if not content:
        raise UnreadableImageError(f"{name}: not an image: there are no bytes.")
    return _decoded(lambda: _decode(content), name)


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """Return the content of an image's file. Raises UserError where it cannot be read, as `open_image` does."""
    return _read(Path(path))


def image_name(source: ImageSource) -> str:
    """Return what messages call an image: its path, or its size in pixels where it comes from memory."""
    if isinstance(source, Image.Image):
        return f"image of {source.width} x {source.height}"
    if isinstance(source, np.ndarray):
        return f"array of shape {source.shape}"
    return printable(str(source))


def image_path(source: ImageSource) -> Path | None:
    """Return the path of an image, None for one that comes from memory."""
    return None if isinstance(source, Image.Image | np.ndarray) else Path(source)


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(f"an array of shape {array.shape} and type {array.dtype}; expected an RGB image: (H, W, 3), uint8.")
    return Image.fromarray(array)


def _decoded(decode: Callable[[], Image.Image], name: str) -> Image.Image:
    """Return what ``decode`` returns. Raises UnreadableImageError, which says why in one line."""
    try:
        return decode()
    except Image.UnidentifiedImageError:
        reason = f"not an image in a known format ({', '.join(FORMATS)})"
    except Image.DecompressionBombError as error:
        reason = f"too large to be decoded safely: {error}"
    except MemoryError:
        raise
    except Exception as error:  # decoders fail on damaged files with nearly every type there is
        reason = f"the image is damaged or of an unsupported kind: {str(error).strip() or type(error).__name__}"
    raise UnreadableImageError(f"{name}: {printable(reason.rstrip('.'))}.") from None


def explain_failure(source: ImageSource, error: Exception) -> str:
    """Return a line on why an image could not be used: what `open_image`, a transform or a model raised for it.

    Raises:
        Exception: ``error`` itself, where it is neither about the image nor about the memory that it takes.
    """
    if isinstance(error, UserError):
        return str(error)
    failure = machine_failure(error)
    if failure is not None and failure.is_memory:
        return f"{image_name(source)}: there is not enough memory for an image of its size."
    raise error


def _read(path: Path) -> bytes:
    """Return the file's content. Apart from decoding, so that a failing disk is never taken for a bad image."""
    name = printable(str(path))
    try:
        # Opening a named pipe would wait for its other end, and reading a device need not end.
        with open(path, "rb", opener=_open_without_waiting) as file:
            _require_regular(name, os.fstat(file.fileno()).st_mode)
            return file.read()
    except FileNotFoundError:
        linked = " (the link is broken)" if path.is_symlink() else ""
        raise UserError(f"{name}: there is no such file{linked}.{nearest_sibling(path)}") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        mode = _mode(path)
        if mode is not None:
            _require_regular(name, mode)
        reason = "a link that leads to itself" if getattr(error, "errno", None) == errno.ELOOP else reason_of(error)
        raise UserError(f"{name}: cannot be read: {reason}.") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return None


def _require_regular(name: str, mode: int) -> None:
    for is_kind, what in _NOT_FILES:
        if is_kind(mode):
            raise UserError(f"{name}: {what}, where the file of an image is expected.") from None


def _decode(content: bytes) -> Image.Image:
    """Decode and convert, without a word about oddities that do no harm (ImageNet has images with damaged metadata)."""
    pixels = decode_jpeg(content)
    if pixels is not None:
        return MappedImage.of(pixels)
    with _WITHOUT_WARNINGS:
        try:
            return _decode_as_it_is(content)
        except Exception:
            # Pillow refuses texts and colour profiles of more than a megabyte, which the pixels do not need.
            for without in _without_texts(content):
                with contextlib.suppress(Exception):
                    return _decode_as_it_is(without)
            raise


def _decode_as_it_is(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.load()
        return _converted(image)


def _converted(image: Image.Image) -> Image.Image:
    return _with_orientation(_to_rgb(_turn_upright(image)), image)


def _without_texts(content: bytes) -> Iterator[bytes]:
    """Yield a PNG without its colour profile and texts: first with those that hold an orientation, then without these too.

    Yields nothing for another format, and where there is nothing to leave out.
    """
    if not content.startswith(_PNG_SIGNATURE):
        return
    for keep in (_ORIENTED_TEXTS, ()):
        kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
        while position < len(content):
            end = position + 12 + int.from_bytes(content[position : position + 4], "big")
            kind, body = content[position + 4 : position + 8], content[position + 8 : position + 40]
            if kind not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt") or (kind != b"iCCP" and body.startswith(keep)):
                kept.append(content[position:end])
            position = end
        shorter = b"".join(kept)
        if len(shorter) < len(content):
            yield shorter


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation that `open_image` undid, 1 where there was nothing to undo."""
    return int(image.info.get(_ORIENTATION, 1))


def as_stored(image: Image.Image) -> Image.Image:
    """Return an image of `open_image` as its file has the pixels, without regard to the EXIF orientation."""
    method = _UPRIGHT.get(orientation_of(image))
    return image if method is None else image.transpose(_INVERSE.get(method, method))


def _with_orientation(upright: Image.Image, image: Image.Image) -> Image.Image:
    """Note the orientation that `_turn_upright` undid, which conversions lose."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        known = orientation in _UPRIGHT
    except Exception:
        return upright
    if known:
        upright.info[_ORIENTATION] = orientation
    return upright


def _turn_upright(image: Image.Image) -> Image.Image:
    """Undo the EXIF orientation. Damaged metadata is no reason to refuse an image."""
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
