"""A detector's sections of a report: pycocotools' and torchmetrics' figures, and only the images that are shown are opened."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.detections import found_shapes, made_coco, made_predictions
from PIL import Image
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision

from stvit_cli import tasks
from stvit_cli.analysis.report.page import render
from stvit_cli.data.coco import CocoImages, DetectionEvalSet, ground_truth
from stvit_cli.data.coco_index import CocoIndex, read_coco
from stvit_cli.data.palette import class_colour
from stvit_cli.data.shapes import write_coco_tree
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.bootstrap import intervals
from stvit_cli.tasks.detection import sample_sheet as sheets
from stvit_cli.tasks.detection import shown_images
from stvit_cli.tasks.detection.drawing import DrawnObject, draw_objects
from stvit_cli.tasks.detection.matching import IOU_THRESHOLDS, RECALL_THRESHOLDS
from stvit_cli.tasks.detection.metrics import coco_metrics
from stvit_cli.tasks.detection.report import detection_report
from stvit_cli.tasks.detection.shown_images import compared_image
from stvit_cli.tasks.report_parts import GalleryPart, MatrixPart, MetricsPart, ReportSection, TablePart

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make intervals of few resamples: their values are not looked at here."""
    monkeypatch.setattr("stvit_cli.tasks.bootstrap.RESAMPLES", 20)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes; one class has a hostile name, one image no objects, one object is a crowd and one has no mask."""
    root = tmp_path_factory.mktemp("scenes") / "tree"
    write_coco_tree(root, (2, 8), 64, seed=3)
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"][1]["name"] = HOSTILE
    content["annotations"] = [annotation for annotation in content["annotations"] if annotation["image_id"] != 3]
    content["annotations"][0]["iscrowd"] = 1
    del content["annotations"][3]["segmentation"]
    path.write_text(json.dumps(content))
    return root


def _index(tree: Path) -> CocoIndex:
    return read_coco(tree / "annotations" / "instances_val2017.json", tree / "val2017")


def _report(index: CocoIndex, results: list[dict[str, Any]], max_images: int = 4) -> dict[str, ReportSection]:
    given: Any = SimpleNamespace(
        evaluation=SimpleNamespace(val_set=DetectionEvalSet(CocoImages(index))),
        predictions=made_predictions(index, results),
        max_images=max_images,
    )
    return {section.id: section for section in detection_report(given)}


def _part(section: ReportSection, kind: type, position: int = 0) -> Any:
    return [part for part in section.parts if isinstance(part, kind)][position]


def test_the_figures_are_those_of_pycocotools(tree: Path) -> None:
    index = _index(tree)
    results = found_shapes(index, masks=False)
    sections = _report(index, results)
    expected = dict(coco_metrics(index, results, masks=False))
    metrics = _part(sections["metrics"], MetricsPart).metrics
    assert [metric.name for metric in metrics] == ["box_ap", "box_ap50", "box_ap75", "box_ar_100"]
    for metric in metrics:
        assert metric.value == pytest.approx(expected[metric.name], abs=1e-9)
        assert metric.low is None or metric.low <= metric.value <= metric.high
    sizes = {row[0].split(",")[0]: row for row in _part(sections["metrics"], TablePart).rows}
    for size in ("small", "medium", "large"):
        for value, name in zip(sizes[size][2:], ("ap", "ar"), strict=True):
            wanted = expected[f"box_{name}_{size}"]
            assert value is None if wanted == -1 else value == pytest.approx(wanted, abs=1e-9)
    truth = ground_truth(index)
    with contextlib.redirect_stdout(io.StringIO()):
        labels = {category.written_id: label for label, category in enumerate(index.categories, 1)}
        numbers = {image_id: number for number, image_id in enumerate(sorted(index.image_ids), 1)}
        numbered = [
            entry | {"image_id": numbers[entry["image_id"]], "category_id": labels[entry["category_id"]]} for entry in results
        ]
        oracle = COCOeval(truth, truth.loadRes(numbered), "bbox")
        oracle.evaluate()
        oracle.accumulate()
    precision, recall = oracle.eval["precision"][:, :, :, 0, 2], oracle.eval["recall"][:, :, 0, 2]
    for label, row in enumerate(_part(sections["classes"], TablePart).rows):
        found = precision[:, :, label]
        if (found > -1).all():
            assert row[2:5] == pytest.approx([100 * found.mean(), 100 * found[0].mean(), 100 * recall[:, label].mean()], abs=1e-9)
        else:
            assert row[2:] == [None] * 7


def test_the_map_is_that_of_torchmetrics(tmp_path: Path) -> None:
    results = made_coco(tmp_path / "a.json", 6, seed=4, masks=False, equal_scores=False)
    for entry in results:  # no IoU is at a threshold, where float32 would decide
        entry["bbox"] = [value + 0.25 + entry["score"] / 4 for value in entry["bbox"]]
    content = json.loads((tmp_path / "a.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    (tmp_path / "a.json").write_text(json.dumps(content))
    index = read_coco(tmp_path / "a.json", None)
    statistics = made_predictions(index, results).statistics()
    # Its own thresholds are float32: a recall of 0.3 is then below 0.3.
    metric = MeanAveragePrecision("xywh", iou_thresholds=IOU_THRESHOLDS.tolist(), rec_thresholds=RECALL_THRESHOLDS.tolist())
    for image_id in index.image_ids:
        parts = []
        for entries in (results, content["annotations"]):
            chosen = [entry for entry in entries if entry["image_id"] == image_id]
            parts.append(
                {
                    "boxes": torch.tensor([entry["bbox"] for entry in chosen], dtype=torch.float32).reshape(-1, 4),
                    "labels": torch.tensor([entry["category_id"] for entry in chosen], dtype=torch.int64),
                    "scores": torch.tensor([entry.get("score", 1.0) for entry in chosen]),
                }
            )
        metric.update([parts[0]], [parts[1]])
    expected = metric.compute()
    found = dict(zip(statistics.names, statistics(np.ones(6, dtype=np.int64)), strict=True))
    for ours, theirs in (("box_ap", "map"), ("box_ap50", "map_50"), ("box_ap75", "map_75"), ("box_ar_100", "mar_100")):
        assert found[ours] == pytest.approx(100 * float(expected[theirs]), abs=1e-4), ours


def test_masks_have_their_own_columns_and_names_of_classes_do_no_harm(tree: Path) -> None:
    index = _index(tree)
    sections = _report(index, found_shapes(index))
    assert list(sections) == ["metrics", "classes", "precision-recall", "confusion", "errors", "mistakes"]
    assert "mask AP" in [column.name for column in _part(sections["classes"], TablePart).columns]
    assert [metric.name for metric in _part(sections["metrics"], MetricsPart).metrics][4] == "mask_ap"
    matrix = _part(sections["confusion"], MatrixPart)
    counts = np.array(matrix.counts)
    assert matrix.class_names[-1] == "background"
    objects = sum("crowd" not in entry for position in range(len(index)) for entry in index.annotations(position))
    assert counts[:-1].sum() == objects
    assert matrix.images
    for (row, column), images in matrix.images.items():
        assert counts[row, column] > 0
        assert row != column
        assert all(len(image.thumbnails) == 2 for image in images)
    errors = {row[0]: row[1] for row in _part(sections["errors"], TablePart).rows}
    by_class = _part(sections["errors"], TablePart, 1).rows
    assert [sum(row[position] for row in by_class) for position in range(1, 7)] == list(errors.values())
    page = render("Report", "", list(sections.values()))
    assert HOSTILE not in page
    assert "<img src=x" not in page
    again = render("Report", "", list(_report(index, found_shapes(index)).values()))
    assert page == again


def test_an_image_that_cannot_be_opened_is_named_and_left_out(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = _index(tree)
    results = found_shapes(index)
    whole = _part(_report(index, results)["mistakes"], GalleryPart)
    damaged, opened = whole.images[0].name, CocoImages.open

    def open_image(self: CocoImages, position: int) -> Image.Image:
        if self.path(position).endswith(damaged):
            raise OSError(f"{damaged} is truncated")
        return opened(self, position)

    monkeypatch.setattr(CocoImages, "open", open_image)
    sections = _report(index, results)
    assert damaged not in [image.name for image in _part(sections["mistakes"], GalleryPart).images]
    assert _part(sections["mistakes"], GalleryPart).total == whole.total
    lines = sections["images-not-shown"].parts[0].lines
    assert damaged in lines[0]
    assert "truncated" in lines[1]


def test_other_images_than_those_predicted_are_not_shown(tree: Path) -> None:
    index = _index(tree)
    results = found_shapes(index)
    given: Any = SimpleNamespace(
        evaluation=SimpleNamespace(val_set=DetectionEvalSet(CocoImages(index, np.arange(1, 8)))),
        predictions=made_predictions(index, results),
        max_images=4,
    )
    sections = {section.id: section for section in detection_report(given)}
    assert _part(sections["mistakes"], GalleryPart).images == []
    assert "7 images now, not the 8" in sections["images-not-shown"].parts[0].lines[0]


def test_of_5000_images_only_those_shown_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 5000
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 480, "width": 640} for number in range(size)]
    annotations = [
        {"id": number + 1, "image_id": number, "category_id": 1 + number % 3, "bbox": [9, 9, 90, 80], "area": 7200, "iscrowd": 0}
        for number in range(size)
    ]
    categories = [{"id": number, "name": str(number)} for number in (1, 2, 3)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    index, opened = read_coco(path, None), []

    def open_image(self: CocoImages, position: int) -> Image.Image:
        opened.append(position)
        return Image.new("RGB", (640, 480))

    monkeypatch.setattr(CocoImages, "open", open_image)
    results = [
        {
            "image_id": number,
            "category_id": 1 + number % 2,
            "score": 0.5 + number % 99 / 250,
            "bbox": [9 + number % 60, 9, 90, 80],
        }
        for number in range(size)
    ]
    sections = _report(index, results, max_images=5)
    assert len(set(opened)) == len(opened) <= 10
    assert len(_part(sections["mistakes"], GalleryPart).images) == 5


def test_a_set_without_annotations_has_its_detections_alone(tree: Path, tmp_path: Path) -> None:
    content = json.loads((tree / "annotations" / "instances_val2017.json").read_text())
    (tmp_path / "bare.json").write_text(json.dumps(content | {"annotations": []}))
    index = read_coco(tmp_path / "bare.json", tree / "val2017")
    sections = _report(index, found_shapes(_index(tree)))
    assert list(sections) == ["detections"]
    rows = _part(sections["detections"], TablePart).rows
    assert sum(row[2] for row in rows) == len(found_shapes(_index(tree)))
    assert _part(sections["detections"], GalleryPart).images


def test_without_a_detection_there_is_a_report_too(tree: Path) -> None:
    index = _index(tree)
    sections = _report(index, [])
    assert _part(sections["metrics"], MetricsPart).metrics[0].value == 0
    assert dict(zip(("type", "errors"), _part(sections["errors"], TablePart).rows[-1], strict=False))["errors"] > 0


def test_where_nothing_is_found_the_masks_have_metrics_too(tree: Path) -> None:
    sections = _report(_index(tree), [])
    names = [metric.name for metric in _part(sections["metrics"], MetricsPart).metrics]
    assert [name for name in names if name.startswith("mask")], names


def test_the_page_says_how_far_few_objects_shift_the_interval_of_ap(tree: Path) -> None:
    index = _index(tree)
    note = _part(_report(index, found_shapes(index))["metrics"], MetricsPart).note
    shift = intervals(made_predictions(index, found_shapes(index)).statistics(), len(index))["box_ap"].bias
    assert shift < -0.1
    assert f"mean box AP is {-shift:.1f} lower" in note


def test_runs_are_compared_by_a_truth_that_names_no_error_of_one_of_them(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, texts = _index(tree), []
    monkeypatch.setattr(shown_images, "draw_objects", lambda image, objects: texts.extend(o.text for o in objects) or image)
    given: Any = SimpleNamespace(
        evaluation=SimpleNamespace(val_set=DetectionEvalSet(CocoImages(index))), predictions=made_predictions(index, [])
    )
    shown = compared_image(given)(0)
    assert shown is not None
    assert [shot.label for shot in shown.thumbnails] == ["truth", "prediction"]
    assert texts
    assert not any("missed" in text for text in texts)
    _report(index, [])
    assert any(text.endswith(" (missed)") for text in texts)


def test_a_box_is_drawn_in_the_colour_of_its_class() -> None:
    image = Image.new("RGB", (100, 50), "white")
    mask = np.zeros((50, 100), dtype=np.uint8)
    mask[20:40, 40:80] = 1
    drawn = draw_objects(image, [DrawnObject(4, (40, 20, 40, 20), "dog\n", mask)], side=200)
    assert drawn.size == (200, 100)
    pixels = np.asarray(drawn)
    assert tuple(pixels[60, 80]) == tuple(pixels[41, 120]) == class_colour(4)
    inside, outside = pixels[60, 120], pixels[90, 20]
    assert (outside == 255).all()
    assert not (inside == 255).all()
    assert (np.asarray(image) == 255).all()  # it is left as it is


def test_the_sample_sheet_has_the_objects_of_the_augmented_samples(coco_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{{task: detection, model: {{name: stvit-nano}}, data: {{kind: coco, dir: {coco_tree}}}, augment: {{hflip: 1.0}}}}"
    words = ("detection.short_sides=[64]", "detection.long_side=96", "detection.channels=16", "detection.fc_dim=16")
    task = tasks.build(recipe_io.from_text(text, words))
    drawn: list[list[DrawnObject]] = []

    def draw(image: Image.Image, objects: list[DrawnObject]) -> Image.Image:
        drawn.append(objects)
        return draw_objects(image, objects)

    monkeypatch.setattr(sheets, "draw_objects", draw)
    sheet = sheets.sample_sheet(task, 3)
    assert len(sheet) == 3
    assert [image.thumbnails[0].data for image in sheet] == [image.thumbnails[0].data for image in sheets.sample_sheet(task, 3)]
    for image, objects in zip(sheet, drawn, strict=False):
        (position,) = [index for index in range(4) if task.train_set.path(index).endswith(image.name)]
        targets = task.train_set.images.targets(position)  # not augmented
        width = task.train_set.images.size(position)[1]
        flipped = sorted(width - right for right in targets["boxes"][:, 2].tolist())
        assert sorted(float(entry.box[0]) for entry in objects) == flipped
        assert all(entry.mask is not None for entry in objects)


def test_names_of_objects_cover_no_other() -> None:
    box = (20, 20, 30, 30)
    written: list[tuple[float, ...]] = []
    image = Image.new("RGB", (100, 100), "white")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stvit_cli.tasks.detection.annotated._write", lambda pen, text, font, band, *rest: written.append(band))
        draw_objects(image, [DrawnObject(label, box, "a long name") for label in range(60)])
    assert 3 < len(written) < 60
    for number, (left, top, right, bottom) in enumerate(written):
        assert all(left >= r or right <= x or top >= b or bottom <= y for x, y, r, b in written[:number])
