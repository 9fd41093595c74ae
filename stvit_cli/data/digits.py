"""The 1797 handwritten digits in the package, for a first training without a download. See digits.txt."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.sampling import hold_out

NUM_HELD_OUT = 360
SIDE = 32
"""Side of an image, in pixels: that of the original scans, of which the file holds sums over blocks of 4 x 4 pixels."""


@functools.cache
def _arrays() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the images (1797, 8, 8), with values 0..16, and the labels (1797,)."""
    with resources.files(__package__).joinpath("digits.npz").open("rb") as stream, np.load(stream) as arrays:
        return arrays["images"], arrays["labels"]


@functools.cache
def _held_out() -> NDArray[np.bool_]:
    """Choose 360 of the 1797 by hashes of their indices, stratified by class (largest remainders); the choice never changes."""
    labels = _arrays()[1]
    exact = np.bincount(labels) * (NUM_HELD_OUT / len(labels))
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: NUM_HELD_OUT - shares.sum()]] += 1
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for digit, share in enumerate(shares):
        numbers = np.flatnonzero(labels == digit)
        chosen[numbers] = hold_out([str(number) for number in numbers], int(share))
    return chosen


class DigitImages:
    """The 1437 training or the 360 held-out digits, as images of 32 x 32 pixels, white on black.

    Args:
        held_out: the digits for validation in place of those for training.

    >>> len(DigitImages(held_out=True)), DigitImages(held_out=True).open(0).size
    (360, (32, 32))
    """

    class_names = tuple("0123456789")
    notes: tuple[str, ...] = ()

    def __init__(self, held_out: bool) -> None:
        self._numbers = np.flatnonzero(_held_out() == held_out)

    def __len__(self) -> int:
        return len(self._numbers)

    def fingerprint(self) -> str:
        """Return a constant: the digits are part of the package."""
        return "digits"

    def path(self, index: int) -> str:
        """Return a name; there is no such file."""
        return f"digits/{self.relative_path(index)}"

    def relative_path(self, index: int) -> str:
        """Return a name: the number of the digit among all."""
        return f"{self._numbers[index]:04d}.png"

    def target(self, index: int) -> int:
        return int(_arrays()[1][self._numbers[index]])

    def open(self, index: int) -> Image.Image:
        """Return the image in mode RGB."""
        values = _arrays()[0][self._numbers[index]]
        small = Image.fromarray(np.rint(values * (255 / 16)).astype(np.uint8))
        return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")


def write_samples(folder: Path) -> list[Path]:
    """Write the first held-out image of each digit as ``digit-0.png`` ... ``digit-9.png``, to try a trained model on."""
    images = DigitImages(held_out=True)
    targets = [images.target(index) for index in range(len(images))]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"digit-{digit}.png" for digit in range(10)]
    for digit, path in enumerate(paths):
        images.open(targets.index(digit)).save(path)
    return paths
