"""timm's data sets: those on the disk here, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from timm.data import create_dataset

from stvit_cli.data import timm_dataset
from stvit_cli.data.timm_dataset import find_timm_images
from stvit_cli.errors import UserError


def test_images_targets_and_names_are_those_of_timms_dataset(image_folder: Path) -> None:
    train, val = find_timm_images("torch/image_folder", image_folder, val_split="val")
    oracle = create_dataset("torch/image_folder", root=str(image_folder), split="val")
    assert (len(train), len(val), len(oracle)) == (16, 6, 6)
    assert train.class_names == val.class_names == tuple(oracle.classes)
    for index, (image, target) in enumerate(oracle):
        assert np.array_equal(np.asarray(val.open(index)), np.asarray(image))
        assert val.target(index) == target


def test_without_a_second_split_a_part_of_each_class_is_held_out(image_folder: Path) -> None:
    train, val = find_timm_images("torch/image_folder", image_folder, 0.25)
    assert sorted(val.target(index) for index in range(len(val))) == [0, 0, 1, 1]
    assert len(train) == 12
    assert not {train.path(index) for index in range(12)} & {val.path(index) for index in range(4)}
    assert train.fingerprint() != val.fingerprint()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar10", r"data\.name: found cifar10, expected the name of a data set with its prefix"),
        ("torch/cifar11", r"torch/cifar11, split train: cannot be opened in .*: Unknown torchvision dataset cifar11"),
        ("torch/cifar10", r"torch/cifar10, split train: cannot be opened in .*Dataset not found"),
        ("tfds/mnist", r"tfds/ can only be read from beginning to end"),
        ("wds/x", r"wds/ can only be read from beginning to end"),
        ("tf/mnist", r"expected a name that begins with torch/ or hfds/"),
    ],
)
def test_what_cannot_be_opened_is_refused_by_its_name(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_timm_images(name, tmp_path)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(timm_dataset.NEEDED, "hfds", "no_such_library")
    with pytest.raises(UserError, match=r"needs no_such_library: pip install 'stvit\[datasets\]'"):
        find_timm_images("hfds/cifar10", tmp_path)
    with pytest.raises(UserError, match=r"data\.dir is not set"):
        find_timm_images("torch/cifar10", None)
