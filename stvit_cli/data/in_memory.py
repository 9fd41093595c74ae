"""Small images kept in memory: decoded once, in place of every time that an epoch or an evaluation comes to them.

What comes out is the same to the last bit; see `batch_transforms`. An image that cannot be opened is not kept: whoever needs it
opens it then, and fails, skips or replaces it as without this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.inspection import evenly_spaced
from stvit_cli.data.loader import usable_workers
from stvit_cli.errors import UserError
from stvit_cli.utils.environment import local_world_size
from stvit_cli.utils.memory import available_memory

MAX_BYTES = 2 << 30
"""Largest size of all images together that are kept unless this is asked for."""
SHARE = 1 / 8
"""Largest share of the available memory that they take then."""
UNKNOWN_MEMORY = 4 << 30
"""Taken for the available memory where the system does not tell."""
MAX_PIXELS = 256 * 256
"""Largest mean number of pixels of images that are kept unless this is asked for: larger ones cost more to transform than the
training process should spend."""
NUM_MEASURED = 16
"""Images that are opened to find out how large all of them will be."""
MAX_THREADS = 4
"""Threads that decode files: Pillow's decoders release Python's lock."""
AT_ONCE = 512
"""Images between two looks at whether to stop."""
OBJECT = 512
"""Bytes of an image of Pillow beside its rows, about."""

T = TypeVar("T")


class Openable(Protocol):
    """Images that are opened by index."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str: ...

    def open(self, index: int) -> Image.Image: ...


class TooLargeError(Exception):
    """The images take more memory than was allowed."""


class LoadingStoppedError(Exception):
    """Loading was stopped by whoever started it."""


def without_colour(image: Image.Image) -> Image.Image:
    """Return an RGB image whose channels are equal in mode L, which takes a quarter of the memory; others as they are.

    >>> without_colour(Image.new("RGB", (2, 2), (7, 7, 7))).mode
    'L'
    """
    if image.mode == "RGB":
        pixels = np.asarray(image)
        first = pixels[..., 0]
        if np.array_equal(first, pixels[..., 1]) and np.array_equal(first, pixels[..., 2]):
            return image.getchannel(0)
    return image


def image_bytes(image: Image.Image) -> int:
    """Return about how much memory an image of Pillow takes: 4 bytes for a pixel in color, 1 in grey."""
    width, height = image.size
    return height * (width * (1 if image.mode == "L" else 4) + 8) + OBJECT


def allowed_bytes(in_memory: Literal[True, "auto"]) -> int:
    """Return how many bytes of images this process may keep.

    Args:
        in_memory: auto: an eighth of the available memory, and at most 2 GiB; True: what is available, except for a tenth. The
            processes of a machine share it.
    """
    free = available_memory()
    if in_memory == "auto":
        most = min(MAX_BYTES, int(SHARE * (UNKNOWN_MEMORY if free is None else free)))
    else:
        most = 1 << 62 if free is None else int(0.9 * free)
    return most // local_world_size()


def expected_bytes(sets: Sequence[Openable], *, max_pixels: int | None) -> int | None:
    """Return about how much memory all images of the sets take, by some of them; None: they have too many pixels.

    Args:
        sets: of images; those that cannot be opened are left out.
        max_pixels: the largest mean number of pixels.
    """
    total = 0.0
    for images in sets:
        sizes, pixels = [], 0
        indices = evenly_spaced(len(images), NUM_MEASURED)
        for index in indices:
            try:
                image = images.open(index)
            except UserError:
                continue
            sizes.append(image_bytes(without_colour(image)))
            pixels += image.width * image.height
            if max_pixels is not None and pixels > max_pixels * len(indices):
                return None
        total += len(images) * (sum(sizes) / len(sizes) if sizes else 0)
    return int(total)


def decode_all(
    images: Openable,
    convert: Callable[[Image.Image], T],
    size_of: Callable[[T], int],
    most: int,
    *,
    stopped: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[list[T | None], int]:
    """Open all images of a set, by threads where they are files.

    Args:
        images: the set.
        convert: what to keep of an image.
        size_of: the number of bytes that this takes.
        most: the largest number of bytes.
        stopped: asked now and then.
        advance: called with the number of images done.

    Returns:
        What is kept of each image, None for one that cannot be opened; and the number of bytes.

    Raises:
        TooLargeError: there is more than ``most``.
        LoadingStoppedError: ``stopped`` said so.
    """

    def opened(index: int) -> T | None:
        try:
            return convert(images.open(index))
        except MemoryError:
            raise
        except Exception:  # whoever needs the image gets it again
            return None

    kept: list[T | None] = []
    taken = 0
    are_files = len(images) > 0 and Path(images.path(0)).is_file()
    for part in _parts(opened, len(images), usable_workers(MAX_THREADS) if are_files else 1):
        kept += part
        taken += sum(size_of(found) for found in part if found is not None)
        if taken > most:
            raise TooLargeError
        advance(len(kept))
        if stopped():
            raise LoadingStoppedError
    return kept, taken


def _parts(opened: Callable[[int], T], count: int, threads: int) -> Iterator[list[T]]:
    ranges = [range(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE)]
    if threads < 2:
        yield from ([opened(index) for index in part] for part in ranges)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        yield from (list(pool.map(opened, part)) for part in ranges)


def stacked(parts: Sequence[NDArray[np.uint8] | None], size: int) -> NDArray[np.uint8]:
    """Return square images as one array (N, size, size, C), C 1 where all are grey and 3 otherwise; zeros where there is None.

    Args:
        parts: arrays (size, size) of grey images, (size, size, 3) of others.
        size: side in pixels.
    """
    in_colour = any(part is not None and part.ndim == 3 for part in parts)
    array = np.zeros((len(parts), size, size, 3 if in_colour else 1), dtype=np.uint8)
    for row, part in zip(array, parts, strict=True):
        if part is not None:
            row[:] = part if part.ndim == 3 else part[..., None]
    return array


def _advance(advance: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    advance(before + done, total)


class Keepable(Protocol):
    """A data set that can keep its images."""

    @property
    def images(self) -> Openable: ...

    def keep_in_memory(self, most: int, stopped: Callable[[], bool], advance: Callable[[int], None]) -> int:
        """Keep them; see `decode_all` for arguments, result and errors."""
        ...

    def release(self) -> None:
        """Read the images from their files again."""
        ...


def keep_in_memory(
    sets: Sequence[Keepable],
    in_memory: bool | Literal["auto"],
    *,
    stopped: Callable[[], bool] = lambda: False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> str | None:
    """Decode all images once and keep them, where that is asked for or where they are small.

    Args:
        sets: of images.
        in_memory: true, false, or auto: where they fit into `allowed_bytes` and have at most `MAX_PIXELS` on average.
        stopped: asked now and then; the images then stay where they are.
        advance: called with the number of images that are decoded, and of all.

    Returns:
        A line for the user; None where they are not kept.

    Raises:
        UserError: they are to be kept, and there is not enough memory.
    """
    if in_memory is False:
        return None
    most, total = allowed_bytes(in_memory), sum(len(kept.images) for kept in sets)
    opened = [kept.images for kept in sets]
    expected = expected_bytes(opened, max_pixels=MAX_PIXELS if in_memory == "auto" else None)
    taken = done = 0
    try:
        if expected is None or expected > most:
            raise TooLargeError
        for kept in sets:
            taken += kept.keep_in_memory(most - taken, stopped, partial(_advance, advance, done, total))
            done += len(kept.images)
    except (TooLargeError, MemoryError, LoadingStoppedError) as error:
        for kept in sets:
            kept.release()
        if in_memory is True and not isinstance(error, LoadingStoppedError):
            raise UserError(
                f"data.in_memory is true, but {total} images take about {max(expected or 0, most) / 1e9:.1f} GB decoded, and "
                f"{most / 1e9:.1f} GB may be taken.\nUse data.in_memory=auto, which reads them from their files where they are "
                "too large."
            ) from None
        return None
    return f"All {total} images are decoded once and kept in memory: {max(taken / 1e6, 0.1):.1f} MB (data.in_memory)."
