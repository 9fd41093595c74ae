"""Folders of images by class: what is found, how it is split, and what is said where it cannot be used."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from stvit_cli.data import imagefolder
from stvit_cli.data.imagefolder import FolderImages, find_eval_images, find_images, find_test_images
from stvit_cli.data.loader import seeded
from stvit_cli.data.sampling import SampleKey, derive_seed
from stvit_cli.errors import UserError
from stvit_cli.recipe import AugmentSection, DataSection, EvalSection
from stvit_cli.tasks.classification.data import build_classification, build_eval_set


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = sum(name.encode()) % 256
        Image.new("RGB", (24, 20), (shade, 255 - shade, 7)).save(path, format="PNG")
    return root


def section(root: Path, **changes: object) -> DataSection:
    return DataSection(dir=str(root), image_size=32).model_copy(update=changes)


def named(images: FolderImages) -> set[str]:
    return {images.relative_path(index) for index in range(len(images))}


def numbered(class_name: str, numbers: Iterable[int]) -> list[str]:
    return [f"{class_name}/{number}.png" for number in numbers]


def test_train_and_val_in_the_order_of_torchvision_nested_and_linked_hidden_left_out(tmp_path: Path) -> None:
    seen = ["train/b/2.PNG", "train/b/10.jpg", "train/a/z/1.png", "train/a/k.webp", "train/ä c/é.jpeg"]
    write(tmp_path, *seen, "val/a/1.png", "val/b/1.png", "val/ä c/1.png", "elsewhere/x.png", "more/y.png")
    write(tmp_path, "train/a/.hidden.png", "train/.thumbnails/t.png", "train/flat.png", "train/a/notes.txt")
    (tmp_path / "train/b/link.png").symlink_to(tmp_path / "elsewhere/x.png")
    (tmp_path / "train/b/linked").symlink_to(tmp_path / "more")
    (tmp_path / "train/b/loop").symlink_to(tmp_path / "train/b")
    train, val = find_images(tmp_path)
    assert train.class_names == val.class_names == ("a", "b", "ä c")
    found = [(train.path(index), train.target(index)) for index in range(len(train))]
    (tmp_path / "train/b/loop").unlink()  # torchvision has no end with it
    (tmp_path / "train/a/.hidden.png").unlink()
    (tmp_path / "train/.thumbnails/t.png").rename(tmp_path / "t.png")
    (tmp_path / "train/.thumbnails").rmdir()
    assert found == ImageFolder(str(tmp_path / "train")).samples
    assert len(val) == 3


def test_items_are_those_of_torchvisions_folder_with_the_same_transform_and_draw(tmp_path: Path) -> None:
    write(tmp_path, *[f"{part}/{name}/{number}.png" for part in ("train", "val") for name in "ab" for number in range(3)])
    augment = AugmentSection(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    built = build_classification(section(tmp_path), augment, EvalSection(), seed=4)
    theirs = ImageFolder(str(tmp_path / "train"), transform=built.train_set.transform)
    for index in range(len(theirs)):
        ours = built.train_set[SampleKey(index, 2, 1)]
        with seeded(derive_seed(4, "sample", 2, index, 1)):
            image, target = theirs[index]
        assert torch.equal(ours["image"], image)
        assert (ours["target"], ours["index"]) == (target, index)
    theirs = ImageFolder(str(tmp_path / "val"), transform=built.val_set.transform)
    assert all(torch.equal(built.val_set[index]["image"], theirs[index][0]) for index in range(len(theirs)))
    assert built.val_set.path(4) == theirs.samples[4][0]


def test_one_folder_is_split_by_class_the_same_way_wherever_it_lies(tmp_path: Path) -> None:
    names = numbered("cat", range(50)) + numbered("dog", range(10)) + numbered("emu", range(2)) + numbered("fox", range(1))
    train, val = find_images(write(tmp_path / "one", *names))
    assert named(train) | named(val) == set(names)
    assert not named(train) & named(val)
    assert np.bincount([val.target(index) for index in range(len(val))], minlength=4).tolist() == [10, 2, 1, 0]
    shuffled = random.Random(0).sample(names, len(names))
    assert named(find_images(write(tmp_path / "two", *shuffled))[1]) == named(val)
    more = write(tmp_path / "one", *numbered("cat", range(50, 55)))
    assert len(named(find_images(more)[1]) & named(val)) >= len(val) - 2
    assert len(find_images(tmp_path / "two", 0.9)[0]) == 5 + 1 + 1 + 1


def test_an_evaluation_takes_val_or_the_held_out_share_or_all(tmp_path: Path) -> None:
    names = numbered("a", range(10)) + numbered("b", range(10))
    flat = write(tmp_path / "flat", *names)
    both = write(tmp_path / "both", *[f"train/{name}" for name in names], "val/a/x.png", "val/b/y.png")
    held_out = find_images(flat)[1]
    assert named(find_eval_images(flat, all_images=False)) == named(held_out)
    assert named(find_eval_images(flat, all_images=True)) == set(names)
    assert named(find_eval_images(both, all_images=True)) == {"a/x.png", "b/y.png"}
    assert len(build_eval_set(section(flat), EvalSection(), all_images=True)) == 20
    assert len(build_eval_set(DataSection(kind="digits"), EvalSection())) == 360


def test_targets_of_an_evaluation_are_the_models(tmp_path: Path) -> None:
    write(tmp_path, "b/1.png", "d/1.png")
    images = find_eval_images(tmp_path, class_names=("d", "c", "b", "a"), all_images=True)
    assert [(images.relative_path(index), images.target(index)) for index in range(2)] == [("b/1.png", 2), ("d/1.png", 0)]
    with pytest.raises(UserError, match=r"(?s)model does not know: d.*4 classes.*Did you mean 'dd'"):
        find_eval_images(tmp_path, class_names=("a", "b", "c", "dd"), all_images=True)


BOTH = ["train/a/1.png", "train/b/1.png", "val/a/1.png"]


def test_a_class_that_val_lacks_is_trained_on_and_said(tmp_path: Path) -> None:
    write(tmp_path, *BOTH)
    train, val = find_images(tmp_path)
    assert train.class_names == val.class_names == ("a", "b")
    assert "val/ has no folder of b" in " ".join(train.notes)


@pytest.mark.parametrize(
    ("names", "directory", "message"),
    [
        (["flowers/a/1.png"], "flowrs", r"no folder .*flowrs. Did you mean 'flowers'"),
        (["flowers/a/1.png"], "flowers/a/1.png", "a file, where a folder is expected"),
        ([], "", "no images and no class folders"),
        (["1.png", "2.jpg"], "", r"has images \(1.png, 2.jpg\) but no class folders"),
        (["a/1.png", "b/notes.txt"], "", r"without images: b. Found there: files ending in .txt"),
        ([*BOTH, "val/b/.1.png"], "", r"val: class folders without images: b\."),
        ([*BOTH, "val/c/1.png"], "", "different classes.\nonly in train/: b\nonly in val/: c"),
        (["train/a/1.png", "validate/a/1.png"], "", "train/ but no val/. Beside it: validate"),
        (["val/a/1.png"], "", "val/ but no train/"),
        (["flowers/rose/1.png", "flowers/tulip/1.png"], "", r"only one class folder, 'flowers'.*rose, tulip: .*give .*flowers\."),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, names: list[str], directory: str, message: str) -> None:
    write(tmp_path, *names)
    with pytest.raises(UserError, match=f"(?s){message}") as caught:
        find_images(tmp_path / directory)
    assert re.search(re.escape(str(tmp_path)), str(caught.value))
    assert len(str(caught.value).splitlines()) <= 6


def test_no_folder_and_nothing_held_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.dir is not set.*data.dir=DIR"):
        find_images(None)
    with pytest.raises(UserError, match=r"data.val_fraction is 0"):
        find_images(write(tmp_path, "a/1.png", "b/1.png"), 0.0)
    with pytest.raises(UserError, match="no val/ to evaluate on"):
        find_eval_images(write(tmp_path / "x", "train/a/1.png"), all_images=True)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"),
        ("Train", "Val"),
        ("TRAINING", "Validation"),
        ("training", "valid"),
        ("train", "test"),
        ("Train", "Testing"),
    ],
)
def test_splits_are_found_by_their_usual_names(tmp_path: Path, train: str, val: str) -> None:
    write(tmp_path, *[f"{split}/{name}/{split}.png" for split in (train, val) for name in ("a", "b")])
    found = find_images(tmp_path)
    assert [named(images) for images in found] == [{f"{name}/{split}.png" for name in "ab"} for split in (train, val)]
    assert found[0].class_names == ("a", "b")
    evaluated = find_eval_images(tmp_path, class_names=("a", "b"), all_images=True)
    assert named(evaluated) == {f"a/{val}.png", f"b/{val}.png"}


def test_test_is_not_evaluated_on_where_there_is_val(tmp_path: Path) -> None:
    write(tmp_path, *[f"{split}/{name}/{split}.png" for split in ("train", "valid", "test") for name in ("a", "b")])
    train, val = find_images(tmp_path)
    assert named(val) == {"a/valid.png", "b/valid.png"}
    assert "test/ is left out: the evaluation is on valid/." in train.notes


def test_test_images_are_for_neither_training_nor_validation(tmp_path: Path) -> None:
    write(tmp_path, *[f"{split}/{name}/{split}.png" for split in ("train", "val", "Test") for name in ("a", "b")])
    train, val = find_images(tmp_path, test_split="test")
    assert (named(train), named(val), train.notes) == ({"a/train.png", "b/train.png"}, {"a/val.png", "b/val.png"}, ())
    assert named(find_test_images(tmp_path, "test", ("a", "b"))) == {"a/Test.png", "b/Test.png"}
    with pytest.raises(UserError, match="has class folders that the model does not know: b"):
        find_test_images(tmp_path, "test", ("a", "c"))
    for used in ("val", "train"):
        with pytest.raises(UserError, match=rf"data\.test_split: {used}/ is trained on or chosen by, so that it is no test set"):
            find_images(tmp_path, test_split=used)
    with pytest.raises(UserError, match=r"data\.test_split: .* has no tests/\. Did you mean 'Test'\?"):
        find_test_images(tmp_path, "tests", ("a", "b"))


def test_without_val_a_part_of_train_is_held_out_where_test_is_the_test_set(tmp_path: Path) -> None:
    write(
        tmp_path, *[f"train/{name}" for name in numbered("a", range(5)) + numbered("b", range(5))], "test/a/1.png", "test/b/1.png"
    )
    assert len(find_images(tmp_path)[0]) == 10  # without the key the evaluation is on test/
    train, val = find_images(tmp_path, 0.2, test_split="test")
    assert (len(train), len(val), len(named(train) | named(val))) == (8, 2, 10)
    assert named(find_eval_images(tmp_path, 0.2, class_names=("a", "b"), test_split="test")) == named(val)
    assert named(find_eval_images(tmp_path, 0.2, class_names=("a", "b"))) == {"a/1.png", "b/1.png"}


def test_a_folder_beside_the_splits_is_not_ignored_in_silence(tmp_path: Path) -> None:
    write(tmp_path, *[f"{split}/{name}/{split}.png" for split in ("Train", "Train_old", "val") for name in ("a", "b")])
    train, _ = find_images(tmp_path)
    assert named(train) == {"a/Train.png", "b/Train.png"}
    assert train.notes == ("Beside Train/ and val/, not used: Train_old.",)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/a/1.png", "Training/a/1.png", "val/a/1.png"], r"which of them is train/"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], r"has val and valid: which of them is val/|has valid and val"),
        (["cat/1.png", "dog/1.png", "test/1.png"], r"has test/ beside cat, dog: it looks like a split, but there is no train/"),
        (["training_set/cat/1.png", "test_set/cat/1.png"], r"test_set, training_set: they look like splits"),
        (["train2017/cat/1.png", "val2017/cat/1.png", "x/1.png"], r"train2017, val2017: they look like splits"),
        (
            ["train/a/1.png", "train/b/1.png", "dev/a/1.png"],
            r"has train/ but no val/\. Beside it: dev\. To hold out .*data.dir=.*train",
        ),
        (["train/a/1.png", "train/b/1.png", "test/1.png"], r"test has images \(1.png\) but no class folders"),
        (["train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/dgo/1.png"], r"only in val/: dgo\. Did you mean 'dog'\?"),
        (["a/1.png", "b/1.png"], r"one image of each class, so none can be held out"),
    ],
)
def test_what_looks_like_a_split_and_cannot_be_one_is_named(tmp_path: Path, names: list[str], said: str) -> None:
    write(tmp_path, *names)
    with pytest.raises(UserError, match=said) as caught:
        find_images(tmp_path)
    assert len(str(caught.value).splitlines()) <= 6


def test_a_class_of_the_model_is_no_split_whatever_its_name(tmp_path: Path) -> None:
    write(tmp_path, "bus/1.png", "train/1.png")
    assert named(find_eval_images(tmp_path, class_names=("bus", "train"), all_images=True)) == {"bus/1.png", "train/1.png"}


def test_a_single_image_of_a_class_is_said(tmp_path: Path) -> None:
    write(tmp_path, *numbered("cat", range(4)), "fox/1.png")
    train, val = find_images(tmp_path)
    assert (len(train), len(val)) == (4, 1)
    assert any("Of fox there is only one image" in note for note in train.notes)


def test_what_archives_and_systems_leave_behind_is_no_class(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png", "__MACOSX/a/1.png", "a/__MACOSX/._1.png", "b/._2.png")
    write(tmp_path, ".git/x.png", "@eaDir/1.png")
    (tmp_path / "b" / "Thumbs.db").touch()
    train, val = find_images(tmp_path)
    assert train.class_names == ("a", "b")
    assert len(train) + len(val) == 4
    assert train.notes == ()


def test_files_left_out_for_their_ending_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png", "a/3.heic", "a/4.HEIC", "b/5.avif", "b/none", "flat.png")
    notes = find_images(tmp_path)[0].notes
    assert any(
        "4 files were left out for the ending: 2 .heic, 1 without an ending, 1 .avif. Images end in .jpg" in n for n in notes
    )
    assert any("flat.png lies beside the class folders" in note for note in notes)
    notes = find_eval_images(tmp_path, class_names=("a", "b"), all_images=True).notes
    assert any("4 files were left out" in note for note in notes)


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    (tmp_path / "a" / "notes.txt").symlink_to(tmp_path / "nowhere.txt")
    find_images(tmp_path)  # no image, no folder: nothing is lost
    for name, target in (("a/3.png", "/gone/3.png"), ("a/more", "/gone/more"), ("c", "/gone/c"), ("b/loop.png", "loop.png")):
        link = tmp_path / name
        link.symlink_to(target)
        with pytest.raises(UserError, match=f"a link leads nowhere: {link} -> {target}"):
            find_images(tmp_path)
        link.unlink()


def test_names_in_two_spellings_of_unicode_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    write(
        tmp_path,
        f"train/{composed}/1.png",
        f"train/{decomposed}/2.png",
        "train/tea/1.png",
        f"val/{decomposed}/1.png",
        "val/tea/1.png",
    )
    train, val = find_images(tmp_path)
    assert len(train.class_names) == 2
    assert [train.target(index) for index in range(3)] == [0, 0, 1]
    assert {Path(train.path(index)).exists() for index in range(3)} == {True}
    assert [val.target(index) for index in range(2)] == [0, 1]
    for spelling in (composed, decomposed):
        assert len(find_eval_images(tmp_path, class_names=(spelling, "tea"), all_images=True)) == 2


def test_an_empty_class_folder_at_an_evaluation_is_said_and_left_out(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b/1.png")
    for empty in ("c", "unknown"):
        (tmp_path / empty).mkdir()
    images = find_eval_images(tmp_path, class_names=("c", "a", "b"), all_images=True)
    assert [images.target(index) for index in range(2)] == [1, 2]
    assert any("no images of c, unknown" in note for note in images.notes)
    for name in ("a", "b"):
        (tmp_path / name / "1.png").unlink()
    with pytest.raises(UserError, match="without images: a, b, c"):
        find_eval_images(tmp_path, class_names=("c", "a", "b"), all_images=True)


def fingerprint_of(root: Path) -> str:
    return find_images(root)[0].fingerprint()


def test_the_fingerprint_covers_names_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{split}/{name}/{number}.png" for split in ("train", "val") for name in ("a", "b") for number in range(3)]
    before = fingerprint_of(write(tmp_path / "one", *names))
    assert fingerprint_of(write(tmp_path / "two", *names)) == before
    (tmp_path / "two/val/a/0.png").unlink()
    assert fingerprint_of(tmp_path / "two") == before  # of what is trained on
    (tmp_path / "two/train/a/0.png").rename(tmp_path / "two/train/a/00.png")
    renamed = fingerprint_of(tmp_path / "two")
    (tmp_path / "two/train/a/00.png").rename(tmp_path / "two/train/b/00.png")
    moved = fingerprint_of(tmp_path / "two")
    for split in ("train", "val"):
        (tmp_path / "one" / split / "b").rename(tmp_path / "one" / split / "c")
    assert len({before, renamed, moved, fingerprint_of(tmp_path / "one")}) == 4


def test_the_fingerprint_of_a_part_is_that_of_its_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, *numbered("a", range(7)), *numbered("bb", range(5)))
    train, val = find_images(root)
    whole = [images.fingerprint() for images in (train, val)]
    assert whole[0] != whole[1]
    total = hashlib.blake2b(b'["a", "bb"]', digest_size=16)
    total.update(b"".join(train.relative_path(index).encode() + b"\0" for index in range(len(train))))
    total.update(np.array([train.target(index) for index in range(len(train))], dtype="<i8").tobytes())
    assert whole[0] == total.hexdigest()
    monkeypatch.setattr(imagefolder, "HASHED_AT_ONCE", 2)
    assert len({images.fingerprint() for images in (train, val)}) == 2


def test_images_of_a_group_are_on_one_side_and_both_sides_have_each_class(tmp_path: Path) -> None:
    names = [f"{name}/{name[0]}{number // 3}_{number}.png" for name in ("cat", "dog") for number in range(15)]
    write(tmp_path, *names)
    train, val = find_images(tmp_path, 0.2, group_by=r"/(\w\d)_")
    groups = [{Path(path).name[:2] for path in named(images)} for images in (train, val)]
    assert not groups[0] & groups[1]
    assert (len(train), len(val)) == (24, 6)
    assert {images.target(index) for images in (train, val) for index in range(len(images))} == {0, 1}
    assert {val.target(index) for index in range(6)} == {0, 1}
    assert "2 of 10 groups by data.group_by" in train.notes[-1]
    assert named(find_eval_images(tmp_path, 0.2, group_by=r"/(\w\d)_")) == named(val)
    with pytest.raises(UserError, match=r"data.group_by: .* is found in no path"):
        find_images(tmp_path, 0.2, group_by="patient")
