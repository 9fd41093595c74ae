"""Small IDX files, as MNIST and Fashion-MNIST have them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 5, 4), dtype=np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 4


def content(array: NDArray[np.uint8]) -> bytes:
    """Return an array of bytes as an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return header + array.tobytes()


def write(
    folder: Path,
    split: str = "train",
    dash: str = "-",
    compress: bool = False,
    count: int = 20,
    pixels: NDArray[np.uint8] = PIXELS,
    labels: NDArray[np.uint8] = LABELS,
) -> None:
    """Write the images and labels of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for what, array in (("images", pixels), ("labels", labels)):
        name = f"{split}-{what}{dash}idx{array.ndim}-ubyte"
        data = content(array[:count])
        (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(data) if compress else data)
