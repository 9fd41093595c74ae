"""Reading of label maps: grey or palette PNGs of the image's size that hold the number of a class for each pixel."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.errors import UserError
from stvit_cli.utils.text import printable

GREY_OR_PALETTE = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
"""Pillow's modes with one number per pixel."""


FORMATS = ("PNG", "TIFF", "BMP")
"""Lossless formats that are read."""

_LOSSY = {b"\xff\xd8\xff": "a JPEG, whose compression changes the numbers", b"RIFF": "a WebP file, which may change the numbers"}
"""Formats that users save label maps as by mistake, by the first bytes of the file."""


def open_label_map(path: Path) -> NDArray[np.int32]:
    """Return the numbers in a label map, (H, W).

    Equal channels are one number, and an alpha channel is left out where nothing is transparent.

    Raises:
        UserError: no such file, not to be decoded, or of several values for each pixel.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{printable(str(path))}: the label map is not a file.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities that do no harm
            with Image.open(path, formats=FORMATS) as label_map:
                mode = label_map.mode
                numbers = np.array(label_map, dtype=np.int32)
    except FileNotFoundError:
        raise UserError(f"{printable(str(path))}: there is no such label map.") from None
    except (MemoryError, UserError):
        raise
    except Exception as error:  # decoders fail on damaged files with nearly every type there is
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = _unidentified(path) if unknown else str(error).strip() or type(error).__name__
        raise UserError(f"{printable(str(path))}: the label map cannot be read: {reason.rstrip('.')}.") from None
    return numbers if mode in GREY_OR_PALETTE else _one_channel(path, numbers, mode)


def _unidentified(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    for first, what in _LOSSY.items():
        if start.startswith(first):
            return f"it is {what}; save label maps as PNG"
    return "not a PNG"


def _one_channel(path: Path, channels: NDArray[np.int32], mode: str) -> NDArray[np.int32]:
    """Return the numbers of a map (H, W, channels) that says each of them once, raise where it does not."""
    expected = "expected a grey or palette PNG, one number per pixel."
    has_alpha = mode in ("LA", "PA", "RGBA")
    colours = channels[..., :-1] if has_alpha else channels
    if has_alpha or mode == "RGB":
        grey = (colours == colours[..., :1]).all()
        if grey and (not has_alpha or (channels[..., -1] == 255).all()):
            return np.ascontiguousarray(channels[..., 0])
        if grey:
            raise UserError(
                f"{printable(str(path))}: the label map has transparent pixels ({mode}), which have no number; {expected}"
            )
    num_colours = len(np.unique(colours.reshape(-1, colours.shape[-1]), axis=0))
    raise UserError(
        f"{printable(str(path))}: the label map is a colour image ({mode}), of {num_colours} colours; {expected}\n"
        "Colours of classes become numbers by the lines under 'Semantic segmentation' in the README."
    )
