"""Where the images of an annotation file are: in the folder of the recipe, or in the only one that has them all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stvit_cli.data.coco_folder import find_image_folder, with_local_names
from stvit_cli.data.layouts import find_layout
from stvit_cli.errors import UserError

NAMES = ["a.jpg", "b.jpg"]


def _fill(*folders: Path, names: list[str] = NAMES) -> None:
    for folder in folders:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()


@pytest.mark.parametrize("setting", ["", ".", "images", "deep/images"])
def test_the_folder_that_is_named_is_taken_first(setting: str, tmp_path: Path) -> None:
    _fill(tmp_path / setting, tmp_path / "other")
    assert find_image_folder(tmp_path / "a.json", tmp_path / setting, NAMES, tmp_path).resolve() == (tmp_path / setting).resolve()


def test_file_names_may_have_folders(tmp_path: Path) -> None:
    names = ["images/a.jpg", "b.jpg"]
    _fill(tmp_path, names=names)
    assert find_image_folder(tmp_path / "a.json", tmp_path / "", names, tmp_path) == tmp_path
    assert find_image_folder(tmp_path / "a.json", tmp_path / "train2017", names, tmp_path) == tmp_path, "found, one above"


@pytest.mark.parametrize("there", ["", "images", "deep/photos"])
def test_the_only_folder_that_holds_all_images_is_found(there: str, tmp_path: Path) -> None:
    _fill(tmp_path / there)
    _fill(tmp_path / "other", names=NAMES[:1])
    assert find_image_folder(tmp_path / "a.json", tmp_path / "train2017", NAMES, tmp_path) == tmp_path / there


def test_two_folders_that_hold_them_are_a_question(tmp_path: Path) -> None:
    _fill(tmp_path / "one", tmp_path / "two")
    with pytest.raises(
        UserError, match=r"more than one folder of .* holds them all: one/?, two/?\.\nChoose one by detection\.train"
    ):
        find_image_folder(tmp_path / "a.json", tmp_path / "train2017", NAMES, tmp_path)


def test_the_other_set_s_images_of_the_same_names_are_not_taken(tmp_path: Path) -> None:
    other = tmp_path / "val2017"
    _fill(other)
    with pytest.raises(UserError, match="cannot be listed"):
        find_image_folder(tmp_path / "a.json", tmp_path / "train2017", NAMES, tmp_path, other)
    _fill(tmp_path / "photos")
    assert find_image_folder(tmp_path / "a.json", tmp_path / "train2017", NAMES, tmp_path, other) == tmp_path / "photos"
    (tmp_path / "train2017").mkdir()
    with pytest.raises(UserError, match=r"2 of its 2 images are not in .*train2017: a.jpg, b.jpg"):
        find_image_folder(tmp_path / "a.json", tmp_path / "train2017", NAMES, tmp_path)
    _fill(tmp_path / "train2017" / "images")
    found = find_image_folder(tmp_path / "a.json", tmp_path / "train2017", NAMES, tmp_path)
    assert found == tmp_path / "train2017" / "images", "below the folder that is there"


def test_a_folder_with_some_of_the_images_is_not_left_for_another(tmp_path: Path) -> None:
    _fill(tmp_path / "train2017", names=NAMES[:1])
    _fill(tmp_path / "backup")
    with pytest.raises(UserError, match=r"1 of its 2 images are not in .*train2017: b.jpg"):
        find_image_folder(tmp_path / "a.json", tmp_path / "train2017", NAMES, tmp_path)


@pytest.mark.parametrize(
    "prefix",
    [
        "/label-studio/data/upload/1/",
        "http://localhost:8080/data/upload/1/",
        "images\\",
        "C:\\me\\images\\",
        "/data/local-files/?d=images/",
    ],
)
def test_names_of_another_machine_are_found_by_their_ends(prefix: str, tmp_path: Path) -> None:
    _fill(tmp_path / "images")
    entries = [{"id": index, "file_name": prefix + name} for index, name in enumerate([*NAMES, "missing.jpg"])]
    changed, remark = with_local_names(tmp_path / "a.json", entries, tmp_path / "images")
    assert [entry["file_name"] for entry in changed] == [*NAMES, "missing.jpg"]
    assert remark is not None
    assert "are taken for a.jpg" in remark
    assert find_layout_folder(tmp_path, entries) in ("images", "."), "the longest end decides"


def find_layout_folder(root: Path, entries: list[dict[str, object]]) -> object:
    (root / "a.json").write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    return find_layout(root).keys["detection.train_images"]


def test_two_images_of_one_file_and_names_that_lead_out_are_not_taken(tmp_path: Path) -> None:
    _fill(tmp_path)
    entries = [{"file_name": "/x/a.jpg"}, {"file_name": "/y/a.jpg"}]
    with pytest.raises(UserError, match=r"would both be a\.jpg in"):
        with_local_names(tmp_path / "a.json", entries, tmp_path)
    outside = [{"file_name": "../b.jpg"}, {"file_name": "a.jpg"}]
    assert with_local_names(tmp_path / "a.json", outside, tmp_path) == (outside, None)
