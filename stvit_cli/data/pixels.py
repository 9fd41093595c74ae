"""Resizing, affine transforms and normalization of RGB images: the results of Pillow and PyTorch to the last bit, in less time.

The Python side of `native/pixels.cpp`, which is compiled at first use (two seconds, kept in the user's cache) and compared with
Pillow each time it is loaded. Without a C++ compiler or AVX2, and where one value differs, there is None of it, and Pillow works.

Pixels are arrays (H, W, 4) of uint8: red, green, blue and a byte that is not used, as Pillow keeps them.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stvit_cli.utils.cpp import compile_library, compiler, processor, stored_library, system
from stvit_cli.utils.library_cache import LibraryUnavailableError
from stvit_cli.utils.processor import instruction_sets

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native") / "pixels.cpp"
# No fused multiply-add: Pillow's arithmetic has none, and the results shall be the same.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++20", "-shared", "-fPIC")

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, width and height of a part of an image, in pixels."""

RESIZED = {Image.Resampling.BICUBIC: 1, Image.Resampling.BILINEAR: 0}
"""The filters that are compiled, and their number there."""
PILLOW = range(10, 14)
"""Major versions of Pillow whose arithmetic the compiled functions repeat."""
CHOOSES_ORDER = int(PIL.__version__.partition(".")[0]) >= 13
"""Whether Pillow resizes columns before rows where that is less work; before 13 it resized rows first."""
MAX_ASPECT = 100
"""Before 13, Pillow resized images that are narrower than this in another order, which depends on the minor version."""

_pointer, _int = ctypes.c_void_p, ctypes.c_int
_ARGUMENTS = {
    "stvit_resize": [_pointer, ctypes.c_int64, _int, _int, _pointer, *[_int] * 6],
    "stvit_affine": [_pointer, _int, _int, _pointer, _pointer, _int],
    "stvit_look_up": [_pointer, ctypes.c_int64, _int, _int, _pointer, _pointer],
}


class MappedImage(Image.Image):
    """An RGB image of Pillow that shares its memory with an array; changing it in place gives it memory of its own.

    Attributes:
        pixels: the array.
    """

    pixels: Pixels

    @classmethod
    def of(cls, pixels: Pixels) -> MappedImage:
        """Return the image of an array (H, W, 4) whose rows lie one after the other.

        >>> MappedImage.of(np.full((2, 3, 4), 7, dtype=np.uint8)).getpixel((0, 0))
        (7, 7, 7)
        """
        height, width = pixels.shape[:2]
        image = cls()
        # What Image.frombuffer does for RGBX: Pillow keeps a pixel of mode RGB in four bytes too.
        image.im = Image.core.map_buffer(pixels, (width, height), "raw", 0, ("RGB", 0, 1))
        image._mode, image._size, image.readonly = "RGB", (width, height), 1
        image.pixels = pixels
        return image

    def transform(
        self,
        size: Any,
        method: Any,
        data: Any = None,
        resample: int = Image.Resampling.NEAREST,
        fill: int = 1,
        fillcolor: Any = None,
    ) -> Image.Image:
        """See Pillow's; affine ones of the same size with a fill color are compiled."""
        functions = library(build=False)
        is_compiled = method == Image.Transform.AFFINE and resample in RESIZED and tuple(size) == self.size
        if functions is None or not is_compiled or not (isinstance(fillcolor, tuple) and len(fillcolor) == 3):
            return super().transform(size, method, data, resample, fill, fillcolor)
        matrix = tuple(float(number) for number in data[:6])
        return MappedImage.of(functions.affine(pixels_of(self), matrix, Image.Resampling(resample), fillcolor))


def mapped(image: Image.Image) -> Image.Image:
    """Return an RGB image as `MappedImage`, others as they are."""
    if image.mode != "RGB" or (isinstance(image, MappedImage) and image.readonly):
        return image
    return MappedImage.of(pixels_of(image))


def pixels_of(image: Image.Image) -> Pixels:
    """Return the pixels (H, W, 4) of an RGB image: its own memory where it has been mapped from an array, otherwise a copy."""
    if isinstance(image, MappedImage) and image.readonly:
        return image.pixels
    return np.frombuffer(image.tobytes("raw", "RGBX"), dtype=np.uint8).reshape(image.height, image.width, 4)


class PixelLibrary:
    """The compiled functions. Arguments are not checked: boxes lie in the image, only the rows of an input may be apart."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        functions = {}
        for name, arguments in _ARGUMENTS.items():
            functions[name] = getattr(library, name)
            functions[name].argtypes, functions[name].restype = arguments, None
        self._resize, self._affine, self._look_up = functions.values()

    def __reduce__(self) -> tuple[Callable[[], PixelLibrary | None], tuple[()]]:
        """A worker that starts as a new interpreter loads them again."""
        return library, ()

    @staticmethod
    def resizes(box: Box, size: int, resampling: Image.Resampling) -> bool:
        """Whether `resize` has the filter, and resizes in Pillow's order."""
        _, _, width, height = box
        return resampling in RESIZED and (CHOOSES_ORDER or not (height > width * MAX_ASPECT and size < height))

    def resize(self, pixels: Pixels, box: Box, out: Pixels, resampling: Image.Resampling, *, flip: bool = False) -> None:
        """Resize a part of an image.

        Args:
            pixels: (H, W, 4).
            box: the part.
            out: (S, S, 3) or (S, S, 4), which is written.
            resampling: the filter, one of `RESIZED`.
            flip: flip the result left to right.
        """
        left, top, width, height = box
        row = pixels.strides[0]
        start = pixels.ctypes.data + top * row + 4 * left
        out_height, out_width, channels = out.shape
        options = (channels, RESIZED[resampling], int(_vertical_first(box, out_width, out_height)), int(flip))
        self._resize(start, row, width, height, out.ctypes.data, out_width, out_height, *options)

    def affine(self, pixels: Pixels, matrix: tuple[float, ...], resampling: Image.Resampling, fill: tuple[int, ...]) -> Pixels:
        """Return an image of the same size, whose pixels outside the input are ``fill``.

        Args:
            pixels: (H, W, 4), contiguous.
            matrix: the six numbers of Pillow's affine transform, from a position in the output to one in the input.
            resampling: the filter, one of `RESIZED`.
            fill: red, green, blue.
        """
        out = np.empty_like(pixels)
        out[...] = (*fill, 255)
        numbers = np.array(matrix, dtype=np.float64)
        height, width = pixels.shape[:2]
        self._affine(pixels.ctypes.data, width, height, out.ctypes.data, numbers.ctypes.data, RESIZED[resampling])
        return out

    def look_up(self, pixels: Tensor, table: Tensor) -> Tensor:
        """Return the value of each byte in the table of its channel.

        Args:
            pixels: (..., D), uint8, contiguous, on the CPU; D is 1, for all channels, or C.
            table: (C, 256), float32, contiguous.

        Returns:
            (..., C), float32.
        """
        out = torch.empty((*pixels.shape[:-1], len(table)), dtype=torch.float32)
        depth = pixels.shape[-1]
        self._look_up(pixels.data_ptr(), pixels.numel() // depth, depth, len(table), table.data_ptr(), out.data_ptr())
        return out


def _vertical_first(box: Box, out_width: int, out_height: int) -> bool:
    """Whether the installed Pillow resizes columns first: where height loses more than twice the pixels that width loses."""
    _, _, width, height = box
    lost = height - out_height
    return CHOOSES_ORDER and lost > max(0, 2 * (width - out_width))


_loaded: list[PixelLibrary | None] = []
_reasons: list[str] = []


def library(*, build: bool = True) -> PixelLibrary | None:
    """Return the compiled functions, None where there are none; compiled and compared with Pillow at the first call.

    Args:
        build: false: None where they have not been loaded in this process yet.
    """
    if not _loaded and not build:
        return None
    if not _loaded:
        try:
            _loaded.append(_checked(PixelLibrary(_path())))
        except (
            LibraryUnavailableError,
            OSError,
            AttributeError,
            TypeError,
            ValueError,
        ) as error:  # another Pillow has other insides
            logger.debug("Images are resized by Pillow: %s", error)
            _loaded.append(None)
            _reasons.append(str(error))
    return _loaded[0]


def why_not() -> str | None:
    """Return why there are no compiled functions, in a line; None where there are. See `library`."""
    return None if library() is not None else _reasons[-1]


def _path() -> Path:
    if sys.platform != "linux" or "AVX2" not in instruction_sets():
        raise LibraryUnavailableError("it needs Linux and AVX2")
    if int(PIL.__version__.partition(".")[0]) not in PILLOW:
        raise LibraryUnavailableError(f"Pillow {PIL.__version__} may resize by other arithmetic")
    program = compiler()
    parts = [SOURCE.read_text(), *system(), *program, *FLAGS, *processor()]
    return stored_library(
        "pixels",
        "the image transforms",
        parts,
        lambda built: compile_library([*program, *FLAGS, str(SOURCE), "-o", str(built)], program),
    )


def _checked(functions: PixelLibrary) -> PixelLibrary:
    """Compare with this version of Pillow: smaller, larger and affine, by each filter. Raises LibraryUnavailableError."""
    generator = np.random.RandomState(0)
    pixels = generator.randint(0, 256, (61, 83, 4)).astype(np.uint8)
    image = MappedImage.of(pixels).copy()
    matrix = (0.9, 0.31, -3.7, -0.23, 1.1, 2.3)
    for resampling in RESIZED:
        for box, size in (((5, 3, 70, 50), 32), ((11, 7, 20, 17), 33), ((2, 1, 30, 59), 24)):
            out = np.empty((size, size, 3), dtype=np.uint8)
            functions.resize(pixels, box, out, resampling, flip=True)
            left, top, width, height = box
            part = image.crop((left, top, left + width, top + height)).resize((size, size), resampling)
            _require_equal(out, part.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        moved: Any = image.transform(image.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=(1, 2, 3))
        _require_equal(functions.affine(pixels, matrix, resampling, (1, 2, 3))[..., :3], moved)
    return functions


def _require_equal(pixels: Pixels, image: Image.Image) -> None:
    if not np.array_equal(pixels, np.asarray(image)):
        raise LibraryUnavailableError("its results are not those of this version of Pillow")
