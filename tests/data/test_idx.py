"""IDX files against torchvision's reader, and the files that are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from helpers.idx_files import LABELS, PIXELS, content, write
from torchvision.datasets.mnist import read_image_file, read_label_file

from stvit_cli.data.idx import find_idx_eval_images, find_idx_images, find_idx_test_images, read_idx
from stvit_cli.errors import UserError
from stvit_cli.recipe import AugmentSection, DataSection, EvalSection
from stvit_cli.tasks.classification.data import build_classification


@pytest.mark.parametrize(("dash", "compress"), [("-", False), (".", False), ("-", True)])
def test_images_and_labels_are_torchvisions(tmp_path: Path, dash: str, compress: bool) -> None:
    write(tmp_path, dash=dash, compress=compress)
    train, val = find_idx_images(tmp_path, 0.25)
    assert (len(train), len(val), train.class_names) == (15, 5 - 1 + 0 * 1 + 1, ("0", "1", "2", "3")) or len(val) == 4
    plain = tmp_path / "plain"
    plain.mkdir()
    write(plain)
    images = read_image_file(str(plain / "train-images-idx3-ubyte")).numpy()
    labels = read_label_file(str(plain / "train-labels-idx1-ubyte")).numpy()
    for part in (train, val):
        for index in range(len(part)):
            number = int(part.path(index).rpartition(":")[2])
            assert np.array_equal(np.asarray(part.open(index)), np.repeat(images[number][..., None], 3, axis=2))
            assert part.target(index) == labels[number]
    assert len(train) + len(val) == 20


def test_nothing_is_chosen_on_the_test_files_unless_a_key_says_so(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "t10k", count=8)
    train, val = find_idx_images(tmp_path, 0.25)
    assert (len(train) + len(val), val.file.name) == (20, "train-images-idx3-ubyte")
    assert any("held out for validation; data.test_split=t10k" in note for note in train.notes)
    assert any(note.endswith("held out for validation.") for note in find_idx_images(tmp_path, 0.25, test_split="t10k")[0].notes)
    train, val = find_idx_images(tmp_path, 0.25, val_split="test")
    assert (len(train), len(val), val.file.name) == (20, 8, "t10k-images-idx3-ubyte")
    assert len(find_idx_eval_images(tmp_path, all_images=True)) == 20


def test_the_test_files_are_other_files_with_the_same_classes(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "t10k", count=8)
    images = find_idx_test_images(tmp_path, "test", ("a", "b", "c", "d"), ["train"])
    assert (len(images), images.relative_path(7), images.class_names[3]) == (8, "t10k-images-idx3-ubyte:7", "d")
    with pytest.raises(UserError, match=r"data\.test_split: t10k is trained on or chosen by, so that it is no test set"):
        find_idx_test_images(tmp_path, "t10k", ("a", "b", "c", "d"), ["train", "test"])
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte: its labels go to 3, but there are 3 classes"):
        find_idx_test_images(tmp_path, "t10k", ("a", "b", "c"), ["train"])
    with pytest.raises(UserError, match="there is no IDX file of the images of val"):
        find_idx_test_images(tmp_path, "val", ("a", "b", "c", "d"), ["train"])


def test_every_seed_holds_out_the_same_images(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "t10k", count=8)
    section = DataSection(kind="idx", dir=str(tmp_path), image_size=32, val_fraction=0.25, test_split="t10k")
    held_out = []
    for seed in (0, 1):
        data = build_classification(section, AugmentSection(), EvalSection(), seed)
        assert data.test_set is not None
        assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (16, 4, 8)
        held_out.append([data.val_set.path(index) for index in range(4)])
    assert held_out[0] == held_out[1]


def test_names_of_a_file_and_of_a_model(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    assert find_idx_images(tmp_path, class_names_file="names.txt")[1].class_names == ("a", "b", "c", "d")
    assert find_idx_eval_images(tmp_path, class_names=["w", "x", "y", "z"]).class_names == ("w", "x", "y", "z")
    with pytest.raises(UserError, match="but the model has other ones, 3"):
        find_idx_eval_images(tmp_path, class_names=["w", "x", "y"])
    with pytest.raises(UserError, match="but the model has other ones, 4"):
        find_idx_eval_images(tmp_path, class_names_file="names.txt", class_names=["a", "b", "d", "c"])
    assert find_idx_images(tmp_path, names=("a", "b", "c", "d", "e"))[0].class_names == ("a", "b", "c", "d", "e")
    assert find_idx_eval_images(tmp_path, names=("a", "b", "c", "d")).class_names == ("a", "b", "c", "d")
    with pytest.raises(UserError, match=r"data\.class_names: found 3 names, but the labels go to 3"):
        find_idx_images(tmp_path, names=("a", "b", "c"))
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"data\.class_names_file: names\.txt has 2 names, but there are 4 classes"):
        find_idx_images(tmp_path, class_names_file="names.txt")


def test_the_fingerprint_sees_another_order_and_not_another_place(tmp_path: Path) -> None:
    prints = []
    for name, labels in (("a", LABELS), ("b", LABELS), ("c", LABELS[::-1])):
        folder = tmp_path / name
        folder.mkdir()
        write(folder)
        (folder / "train-labels-idx1-ubyte").write_bytes(content(labels))
        prints.append(find_idx_images(folder)[0].fingerprint())
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("train-images-idx3-ubyte", b"", r"images-idx3-ubyte is no IDX file: it begins with nothing"),
        ("train-images-idx3-ubyte", b"\x89PNG and more", r"is no IDX file: it begins with 89 50 4e 47"),
        ("train-images-idx3-ubyte", content(PIXELS)[:-1], r"is damaged: 415 bytes, but its header says 416 \(20 x 5 x 4\)"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\xff" * 12, r"is damaged"),
        ("train-images-idx3-ubyte", content(LABELS), r"expected images of \(N, H, W\)"),
        ("train-labels-idx1-ubyte", content(LABELS[:-1]), r"has 19 labels, but train-images-idx3-ubyte has 20 images"),
        ("train-labels-idx1-ubyte", content(PIXELS), r"has 20 labels|expected"),
        ("train-labels-idx1-ubyte", None, r"there is no IDX file of the labels of train. It holds: train-images-idx3-ubyte"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said):
        find_idx_images(tmp_path)


def test_a_missing_folder_of_fashion_mnist_says_where_the_files_come_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*fashion-mnist\..*\n.*Debian's package dataset-fashion-mnist, or"):
        find_idx_images(tmp_path / "fashion-mnist")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "train-images-idx3-ubyte.gz"
    for data in (b"no gzip", gzip.compress(content(PIXELS))[:-9]):
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"ubyte\.gz cannot be read"):
            read_idx(file)
