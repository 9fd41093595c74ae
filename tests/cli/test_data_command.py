"""`stvit data show` and `stvit data check`: what is in a data set, and what is wrong with it, by the real command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.label_files import WRITERS, write_image, write_text, write_ultralytics, write_voc, yolo_labels
from PIL import Image

import stvit_cli

HERE = ("data.num_workers=0",)


def as_json(stvit: Any, *words: str | Path, code: int = 0) -> Any:
    ended = stvit("data", *words, "--json", "-")
    assert ended.code == code, ended.err
    return json.loads(ended.out)


@pytest.mark.parametrize("kind", WRITERS)
def test_show_counts_the_objects_of_each_format(kind: str, stvit, tmp_path: Path) -> None:
    found = as_json(stvit, "show", WRITERS[kind](tmp_path))
    assert (found["task"], found["kind"], found["unit"]) == ("detection", kind, "objects")
    train, val = found["splits"]
    assert (train["num_images"], train["num_objects"], train["counts"]) == (2, 3, {"cat": 2, "dog": 1})
    assert (val["num_images"], val["num_objects"], val["counts"]) == (1, 1, {"cat": 0, "dog": 1})
    assert train["sizes"] == [[64, 48]] * 3
    assert stvit_cli.data_show(tmp_path).to_dict() == found


def test_show_of_folders_by_class_and_of_maps(stvit, image_folder: Path, ade20k_tree: Path) -> None:
    found = as_json(stvit, "show", image_folder)
    assert [split["counts"] for split in found["splits"]] == [{"blue": 8, "red": 8}, {"blue": 3, "red": 3}]
    assert found["splits"][0]["sizes"] == [[48, 40]] * 3
    ended = stvit("data", "show", image_folder)
    assert "blue   8             50.0 %" in ended.out
    names = ["segmentation.class_names=[ground,circle,square,triangle,star]", "segmentation.reduce_zero_label=true"]
    maps = as_json(stvit, "show", ade20k_tree, "data.kind=ade20k", *names)
    assert maps["unit"] == "pixels"
    total = sum(sum(split["counts"].values()) for split in maps["splits"])
    values = [np.asarray(Image.open(path)) for path in ade20k_tree.glob("annotations/*/*.png")]
    assert total == sum(int((numbers > 0).sum()) for numbers in values)
    ended = stvit("data", "show", ade20k_tree, "data.kind=ade20k", "segmentation.class_names=[ground]", names[1])
    assert "4 label maps cannot be used" in ended.err


def test_show_of_a_recipe_and_of_a_run(stvit, short_run: Path) -> None:
    assert [split["num_images"] for split in as_json(stvit, "show", "quickstart")["splits"]] == [1437, 360]
    assert as_json(stvit, "show", short_run)["splits"][0]["counts"] == {"blue": 8, "red": 8}


def test_a_good_data_set_has_no_findings(stvit, image_folder: Path, tmp_path: Path) -> None:
    assert as_json(stvit, "check", image_folder, *HERE)["findings"] == []
    assert as_json(stvit, "check", write_voc(tmp_path), *HERE)["findings"] == []


def kinds(found: Any) -> dict[str, int]:
    result: dict[str, int] = {}
    for finding in found["findings"]:
        name = f"{finding['level']}: {finding['kind']}"
        result[name] = result.get(name, 0) + 1
    return result


def spoil(root: Path) -> Path:
    """Write a data set with one of each fault that a box can have."""
    write_ultralytics(root)
    boxes = ["0 0.5 0.5 1 1", "0 0.5 0.5 0.01 0.5", "1 0.9 0.5 0.4 0.2", "0 0.5 0.5 0 0.5", "7 0.5 0.5 0.1 0.1", "0 0.5"]
    write_text(root / "labels/train/c.txt", 2 * yolo_labels("c") + "\n".join(boxes))
    shutil.copy(root / "images/train/a.png", root / "images/val/z.png")
    shutil.copy(root / "images/train/a.png", root / "images/train/y.png")
    truncated = write_image(root / "images/val/t.png").read_bytes()
    (root / "images/val/t.png").write_bytes(truncated[: len(truncated) // 2])
    return root


def test_check_names_every_fault_and_ends_with_2(stvit, tmp_path: Path) -> None:
    root = spoil(tmp_path / "data")
    found = as_json(stvit, "check", root, *HERE, code=2)
    assert kinds(found) == {
        "error: annotation of an unknown class": 1,
        "error: annotation that cannot be read": 1,
        "error: unreadable image": 1,
        "warning: box beyond its image": 1,
        "warning: box of the whole image": 1,
        "warning: box without area": 1,
        "warning: duplicated box": 1,
        "warning: duplicated image": 1,
        "warning: image of train in val too": 1,
        "warning: tiny box": 1,
    }
    by_kind = {finding["kind"]: finding for finding in found["findings"]}
    assert by_kind["unreadable image"]["path"] == str(root / "images/val/t.png")
    assert by_kind["annotation that cannot be read"]["path"] == f"{root}/labels/train/c.txt, line 8"
    assert by_kind["image of train in val too"]["path"] == str(root / "images/val/z.png")
    assert found["num_errors"] == 3
    ended = stvit("data", "check", root, *HERE)
    assert (ended.code, "3 errors, 7 warnings" in ended.out) == (2, True)
    skipping = as_json(stvit, "check", root, *HERE, "detection.invalid_annotations=skip", code=2)
    assert skipping["num_errors"] == 1  # the image that an evaluation would end at


def test_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    root, steps = spoil(tmp_path), []
    alone = stvit_cli.data_check(root, {"data.num_workers": 0}).to_dict()
    assert alone == stvit_cli.data_check(root, {"data.num_workers": 2}, advance=lambda *step: steps.append(step)).to_dict()
    assert steps[-1] == (6, 6)


def test_check_of_classes_and_of_maps(stvit, image_folder: Path, ade20k_tree: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "classes")
    shutil.copy(folder / "train/red/0.png", folder / "train/blue/same.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "train/red/1.png").save(folder / "train/red/1.png", exif=exif)
    (folder / "train/red/2.png").write_bytes(b"no image")
    found = as_json(stvit, "check", folder, *HERE, code=2)
    assert kinds(found) == {"error: unreadable image": 1, "warning: duplicated image with another class": 1}
    assert found["num_turned"] == 1
    assert as_json(stvit, "check", folder, *HERE, "data.unreadable=skip")["num_errors"] == 0
    maps = shutil.copytree(ade20k_tree, tmp_path / "maps")
    first, second, *_ = sorted(maps.glob("annotations/training/*.png"))
    Image.open(first).resize((20, 20)).save(first)
    numbers = np.asarray(Image.open(second)).copy()
    numbers[0, 0] = 77
    Image.fromarray(numbers).save(second)
    names = ["data.kind=ade20k", "segmentation.class_names=[circle,square,triangle,star,moon]"]
    found = as_json(stvit, "check", maps, *HERE, *names, "segmentation.reduce_zero_label=true", code=2)
    assert kinds(found)["error: wrong label map"] == 2
    assert any("moon" in finding["message"] for finding in found["findings"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["quickstrt"], "Did you mean 'quickstart'?"),
        (["dta"], "Did you mean 'data'?"),
        (["data", "data.knd=coco"], "data.kind"),
        (["empty"], "no labels that are recognized"),
    ],
)
def test_what_is_no_data_set(words: list[str], reason: str, stvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / "data")
    write_image(tmp_path / "empty/1.png")
    for command in ("show", "check"):
        ended = stvit("data", command, *words)
        assert (ended.code, reason in ended.err) == (2, True), ended.err
        assert len(ended.err.splitlines()) <= 6


def test_maps_without_named_classes_are_shown_and_checked_as_they_are_trained_on(stvit, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(4):
        write_image(tmp_path / "images" / f"{index}.jpg")
        numbers = np.zeros((48, 64), dtype=np.uint8)
        numbers[: 8 * (index + 1)] = 2
        Image.fromarray(numbers).save(tmp_path / "masks" / f"{index}.png")
    found = as_json(stvit, "show", tmp_path)
    assert found["class_names"] == ["class 0", "class 2"]
    assert sum(split["counts"]["class 2"] for split in found["splits"]) == 8 * 64 * (1 + 2 + 3 + 4)
    (tmp_path / "masks" / "1.png").write_bytes(b"no image")
    (finding,) = as_json(stvit, "check", tmp_path, *HERE, code=2)["findings"]
    assert (finding["kind"], Path(finding["path"]).name) == ("wrong label map", "1.png")


def test_the_training_after_a_conversion_keeps_the_polygons(stvit, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    for line, recipe in (("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5", "own-masks"), ("0 0.5 0.5 0.25 0.5", "own-boxes")):
        (tmp_path / "a.txt").write_text(line)
        ended = stvit("data", "convert", tmp_path, tmp_path / f"{recipe}.json", "--from", "yolo")
        assert f"--recipe {recipe} " in ended.err, ended.err


@pytest.mark.parametrize("form", [str, Path])
def test_a_folder_that_is_missing_is_said_with_its_neighbour(form: Callable[[Path], str | Path], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(stvit_cli.UserError, match=r"photoz: there is no such folder, file or recipe\. Did you mean 'photos'\?"):
        stvit_cli.data_show(form(tmp_path / "photoz"))
