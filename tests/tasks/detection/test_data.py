"""The sets of a detection run from one COCO file without a split, wherever its images are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stvit_cli import tasks
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import DataSection, DetectionSection, ShapesSection
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.detection.data import build_detection, build_detection_eval_set

Content = dict[str, Any]
CLASSES = ("cat", "dog", "rare")


def _content(count: int = 20) -> Content:
    """Images of four patients, most of them with a cat or a dog, two of different patients with a rare one, two with nothing."""
    content: Content = {"categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES)]}
    content["images"] = [
        {"id": 100 - number, "file_name": f"p{number % 4}_{number}.png", "height": 20, "width": 24} for number in range(count)
    ]
    labels = [[number % 2] for number in range(count)]
    labels[3], labels[10], labels[6], labels[7] = [2, 0], [2], [], []
    content["annotations"] = [
        {"id": 50 * label + number, "image_id": 100 - number, "category_id": label, "bbox": [2, 3, 9, 8]}
        for number, of_image in enumerate(labels)
        for label in of_image
    ]
    return content


def _write(root: Path, content: Content, images: str = "images") -> Path:
    root.mkdir(exist_ok=True)
    for image in content["images"]:
        path = root / images / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 20), "grey").save(path)
    (root / "all.json").write_text(json.dumps(content))
    return root


def _sections(root: Path, val_fraction: float = 0.2, group_by: str | None = None, **keys: Any) -> Any:
    settings = {"train_json": "all.json", "train_images": "images", "val_json": None, "head": "faster-rcnn"} | keys
    data = DataSection(kind="coco", dir=str(root), val_fraction=val_fraction, group_by=group_by)
    return data, DetectionSection(**settings), ShapesSection()


def _names(images: Any) -> list[str]:
    return [Path(images.path(index)).name for index in range(len(images))]


def test_no_image_is_in_both_sets_and_a_rare_class_is_in_both(tmp_path: Path) -> None:
    data = build_detection(*_sections(_write(tmp_path, _content())), 0.5, 0)
    train, val = data.train_set.images, data.val_set.images
    assert len(val) == 4
    assert not set(_names(train)) & set(_names(val))
    empty = {"p2_6.png", "p3_7.png"} - set(_names(val))
    assert len(train) == 16 - len(empty), "images without objects are left out of training"
    assert len(build_detection(*_sections(tmp_path, keep_empty=True), 0.5, 0).train_set) == 16
    for images in (train, val):
        rare = [index for index in range(len(images)) if 3 in images.targets(index)["labels"]]
        assert len(rare) == 1
    assert data.class_names == CLASSES
    assert data.notes == ("all.json has no split: 4 of 20 images are held out for validation (20%).",)


def test_the_held_out_images_are_those_of_every_evaluation_whatever_the_seed_and_the_order(tmp_path: Path) -> None:
    content = _content()
    sections = _sections(_write(tmp_path / "one", content))
    first, second = (build_detection(*sections, 0.5, seed) for seed in (0, 1))
    val = first.val_set.images
    assert _names(val) == _names(second.val_set.images)
    alone = build_detection_eval_set(*sections, CLASSES).images
    assert _names(alone) == _names(val)
    assert [alone.image_id(index) for index in range(4)] == [val.image_id(index) for index in range(4)]
    assert [alone.index.annotations(index) for index in range(4)] == [val.index.annotations(index) for index in range(4)]
    content["images"].reverse()
    content["annotations"].reverse()
    reversed_file = build_detection(*_sections(_write(tmp_path / "two", content)), 0.5, 0)
    assert set(_names(reversed_file.val_set.images)) == set(_names(val))
    assert _names(build_detection_eval_set(*sections, CLASSES, whole=True).images) == [f"p{n % 4}_{n}.png" for n in range(20)]


def test_images_of_a_group_are_held_out_together(tmp_path: Path) -> None:
    _write(tmp_path, _content())
    data = build_detection(*_sections(tmp_path, 0.25, r"^(p\d)_", keep_empty=True), 0.5, 0)
    train, val = ({name[:2] for name in _names(part.images)} for part in (data.train_set, data.val_set))
    assert not train & val
    assert len(train | val) == 4
    assert len(data.val_set) == 5
    assert "(25%, 1 of 4 groups by data.group_by)" in data.notes[0]
    with pytest.raises(UserError, match=r"data.group_by: .* is found in no path"):
        build_detection(*_sections(tmp_path, group_by="patient"), 0.5, 0)
    with pytest.raises(UserError, match=r"has one group of images by data.group_by, so none can be held out"):
        build_detection(*_sections(tmp_path, group_by="p"), 0.5, 0)


@pytest.mark.parametrize(("images", "setting"), [("", ""), ("", "."), ("images", "images"), ("photos/deep", "train2017")])
def test_images_beside_the_file_in_a_folder_or_found(images: str, setting: str, tmp_path: Path) -> None:
    root = _write(tmp_path / "data", _content(), images)
    words = ["data.kind=coco", "detection.train_json=all.json", "detection.val_json=null", "detection.channels=16"]
    recipe = recipe_io.load(
        "shapes-mask-rcnn",
        [*words, f"data.dir={root}", f'detection.train_images="{setting}"', "detection.fc_dim=16"],
    )
    recipe, _ = tasks.resolve(recipe)
    task = tasks.build(recipe)
    said = [note for note in task.notes() if "its images are in" in note]
    assert len(said) == (setting == "train2017")
    assert task.train_set.images.open(0).size == (24, 20)
    info = WeightsInfo("stvit-nano", task="detection", num_classes=3, class_names=CLASSES)
    assert len(tasks.build_evaluation(recipe, info).val_set) == 4
    assert len(tasks.build_evaluation(recipe, info, whole=True).val_set) == 20


def test_one_image_twice_in_a_file_is_on_one_side(tmp_path: Path) -> None:
    content = _content()
    content["images"] += [image | {"id": 1000 + image["id"]} for image in content["images"]]
    data = build_detection(*_sections(_write(tmp_path, content), keep_empty=True), 0.5, 0)
    train, val = (_names(part.images) for part in (data.train_set, data.val_set))
    assert not set(train) & set(val)
    assert len(val) == 8


def test_metrics_of_held_out_images_are_pycocotools_of_these_images(tmp_path: Path) -> None:
    from stvit_cli.tasks.detection.metrics import as_result
    from stvit_cli.tasks.detection.task import DetectionEvaluator

    _write(tmp_path, _content())
    val_set = build_detection(*_sections(tmp_path), 0.5, 0).val_set
    index = val_set.images.index
    results = [
        as_result(index.image_ids[position], index.categories[entry["label"] - 1].written_id, 0.9, (2, 3, 11, 11))
        for position in range(len(index))
        for entry in index.annotations(position)
    ]
    metrics = dict(DetectionEvaluator(val_set, masks=False).compute([(4, results)]))
    assert metrics["num_images"] == 4
    assert metrics["box_ap"] == pytest.approx(100), "objects of the training images are not missed here"
    found = dict(DetectionEvaluator(val_set, masks=False).compute([(4, results[:-1])]))
    assert np.isfinite(found["box_ap"])
    assert found["box_ap"] < 100


def test_a_validation_file_without_objects_is_refused_before_an_epoch_is_trained(tmp_path: Path) -> None:
    _write(tmp_path, _content())
    (tmp_path / "val.json").write_text(json.dumps(_content() | {"annotations": []}))
    with pytest.raises(UserError, match=r"val\.json: no object in the 20 images to evaluate on[^\n]*\n[^\n]*val_json=null"):
        build_detection(*_sections(tmp_path, val_json="val.json", val_images="images"), 0.5, 0)


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    content = _content()
    sections = _sections(_write(tmp_path, content))
    assert len(build_detection_eval_set(*sections, CLASSES, whole=True)) == 20
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match="cannot be listed"):
        build_detection_eval_set(*sections, CLASSES, whole=True)
    _write(tmp_path, content | {"images": content["images"][:12], "annotations": content["annotations"][:5]})
    assert len(build_detection_eval_set(*sections, CLASSES, whole=True)) == 12
