"""The recipe keys for evaluating a run on data in another layout than its own."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from stvit_cli.api.other_data import keys_of_other_data
from stvit_cli.recipe import io as recipe_io


def coco_folder(root: Path, name: str) -> Path:
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "images" / "1.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    image = {"id": 1, "file_name": "1.png", "width": 8, "height": 8}
    file = root / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cup"}]}))
    return root


def keys(found: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in found)


def test_the_layout_of_the_other_folder_is_taken_where_the_runs_own_files_are_not_there(tmp_path: Path) -> None:
    yolo = recipe_io.load("own-boxes", ["data.kind=yolo"])
    found = keys(keys_of_other_data(yolo, coco_folder(tmp_path / "other", "result.json")))
    assert (found["data.kind"], found["detection.train_json"], found["detection.val_json"]) == ("coco", "result.json", "null")
    assert "detection.head" not in found  # the model has its own

    coco = recipe_io.load("coco-mask-rcnn-1x")
    assert keys(keys_of_other_data(coco, tmp_path / "other"))["detection.train_json"] == "result.json"
    same = coco_folder(tmp_path / "same", coco.detection.val_json or "")
    assert not any(key.startswith("detection.") for key in keys(keys_of_other_data(coco, same)))


def test_keys_that_are_given_are_left_to_the_user(tmp_path: Path) -> None:
    yolo = recipe_io.load("own-boxes", ["data.kind=yolo"])
    other = coco_folder(tmp_path / "other", "result.json")
    given = ["data.kind=coco", "detection.val_json=result.json", "detection.val_images=images"]
    assert keys(keys_of_other_data(yolo, other, given)) == {"data.dir": str(other)}


def test_a_folder_of_another_task_is_read_as_the_runs_own_kind(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    assert keys(keys_of_other_data(recipe_io.load("coco-mask-rcnn-1x"), tmp_path))["data.kind"] == "coco"
