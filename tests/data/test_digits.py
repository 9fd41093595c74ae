"""The digits that come with the package."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from stvit_cli.data import digits
from stvit_cli.data.digits import DigitImages, write_samples
from stvit_cli.data.images import open_image
from stvit_cli.data.sampling import derive_seed


def test_the_values_are_those_of_the_source() -> None:
    images, labels = digits._arrays()
    # taken from scikit-learn's own copy: sha256 of load_digits().images and .target as bytes, one after the other
    expected = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == expected


def test_360_are_held_out_of_each_digit_its_share() -> None:
    train, val = DigitImages(held_out=False), DigitImages(held_out=True)
    assert (len(train), len(val)) == (1437, 360)
    names = {train.path(index) for index in range(len(train))} | {val.path(index) for index in range(len(val))}
    assert len(names) == 1797
    in_val = Counter(val.target(index) for index in range(360))
    in_all = Counter(digits._arrays()[1].tolist())
    assert all(abs(in_val[digit] - in_all[digit] * 360 / 1797) < 1 for digit in range(10))


def test_the_held_out_digits_are_the_same_for_ever() -> None:
    val = DigitImages(held_out=True)
    assert derive_seed(*(val.path(index) for index in range(360))) == 6520144161717328099


def test_a_image_shows_the_scan_enlarged_white_on_black() -> None:
    train = DigitImages(held_out=False)
    image = train.open(5)
    assert (image.size, image.mode) == ((32, 32), "RGB")
    number = int(train.path(5)[-8:-4])
    blocks = np.asarray(image)[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
    assert np.corrcoef(blocks.ravel(), digits._arrays()[0][number].ravel())[0, 1] > 0.95


def test_samples_are_held_out_digits_that_read_back_the_same(tmp_path: Path) -> None:
    paths = write_samples(tmp_path / "samples")
    assert [path.name for path in paths] == [f"digit-{digit}.png" for digit in range(10)]
    val = DigitImages(held_out=True)
    held_out = {val.open(index).tobytes(): val.target(index) for index in range(len(val))}
    assert [held_out[open_image(path).tobytes()] for path in paths] == list(range(10))
