"""A segmenter's sections of a report: torchmetrics' figures, the images with the lowest IoU, what cannot be opened."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix, multiclass_jaccard_index

from stvit_cli import tasks
from stvit_cli.analysis.report.page import render
from stvit_cli.data.palette import class_colour
from stvit_cli.data.shapes import write_ade20k_tree
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.report_parts import ChartPart, GalleryPart, MatrixPart, MetricsPart, ReportSection, TablePart
from stvit_cli.tasks.segmentation.drawing import RIGHT, WRONG, error_map, overlay
from stvit_cli.tasks.segmentation.report import compared_image, segmentation_report
from stvit_cli.tasks.segmentation.sample_sheet import sample_sheet
from stvit_cli.tasks.segmentation.task import SegmentationTask

NAMES = ("background", "circle", "</script><img src=x onerror=alert(1)>", "triangle", "star")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make intervals of few resamples: their values are not looked at here."""
    monkeypatch.setattr("stvit_cli.tasks.bootstrap.RESAMPLES", 20)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> SegmentationTask:
    root = tmp_path_factory.mktemp("ade")
    write_ade20k_tree(root, (4, 5), 64, seed=1)
    text = f"""
    {{task: segmentation, model: {{name: stvit-nano}}, data: {{kind: ade20k, image_size: 64, dir: {root}}},
      segmentation: {{class_names: {list(NAMES)}, reduce_zero_label: true, max_size: [64, 64], channels: 16, aux_channels: 8}}}}
    """
    built = tasks.build(recipe_io.from_text(text))
    assert isinstance(built, SegmentationTask)
    built.model.eval()
    return built


@pytest.fixture(scope="module")
def given(task: SegmentationTask) -> Any:
    evaluator = task.evaluator()
    with torch.inference_mode():
        for index in range(len(task.val_set)):
            evaluator.update(task.model, task.collate_eval([task.val_set[index]]))
    return SimpleNamespace(
        recipe=task.recipe,
        evaluation=task,
        predictions=evaluator.predictions([evaluator.state()]),
        trained=SimpleNamespace(prepared=lambda *_: task.model),
        precision="fp32",
        device=torch.device("cpu"),
        max_images=3,
    )


def _sections(given: Any) -> dict[str, ReportSection]:
    return {section.id: section for section in segmentation_report(given)}


def _part(section: ReportSection, kind: type) -> Any:
    return next(part for part in section.parts if isinstance(part, kind))


@pytest.fixture
def maps(task: SegmentationTask) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model says of all pixels, and the truth, (pixels,)."""
    evaluator = task.evaluator()
    samples = [task.val_set[index] for index in range(len(task.val_set))]
    with torch.inference_mode():
        found = [evaluator.infer(task.model, sample["images"], tuple(sample["target"].shape)).flatten() for sample in samples]
    return torch.cat(found), torch.cat([sample["target"].flatten() for sample in samples])


def test_the_figures_are_those_of_torchmetrics(given: Any, maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    sections = _sections(given)
    assert list(sections) == ["metrics", "classes", "confusion", "mistakes"]
    options = {"num_classes": 5, "ignore_index": -1}
    metrics = {metric.name: metric.value for metric in _part(sections["metrics"], MetricsPart).metrics}
    assert metrics["pixel_accuracy"] == pytest.approx(
        100 * float(multiclass_accuracy(*maps, **options, average="micro")), abs=1e-4
    )
    matrix = _part(sections["confusion"], MatrixPart)
    assert matrix.counts == multiclass_confusion_matrix(*maps, **options).tolist()
    iou = multiclass_jaccard_index(*maps, **options, average=None)
    recall = multiclass_accuracy(*maps, **options, average=None)
    rows = _part(sections["classes"], TablePart).rows
    for row, *expected in zip(rows, iou.tolist(), recall.tolist(), strict=True):
        for value, part in zip(row[1:3], expected, strict=True):
            assert value is None or value == pytest.approx(100 * part, abs=1e-4)
    assert [row[4] for row in rows] == np.array(matrix.counts).sum(1).tolist()
    assert sum(_part(sections["mistakes"], ChartPart).series[0].y) == 5


def test_the_images_with_the_lowest_iou_come_first_with_an_error_map(given: Any) -> None:
    sections = _sections(given)
    gallery = _part(sections["mistakes"], GalleryPart)
    assert (len(gallery.images), gallery.total) == (3, 5)
    iou = [float(image.caption[0].split()[1]) for image in gallery.images]
    assert iou == sorted(iou)
    assert [file.label for file in gallery.images[0].thumbnails] == ["truth", "prediction", "error map"]
    page = render("Report", "", list(sections.values()))
    assert NAMES[2] not in page
    assert page == render("Report", "", list(_sections(given).values()))


def test_a_cell_of_the_confusion_has_the_images_in_which_most_pixels_are_confused_so(given: Any) -> None:
    sections, predictions = _sections(given), given.predictions
    shown = {image.name for image in _part(sections["mistakes"], GalleryPart).images}
    cells = _part(sections["confusion"], MatrixPart).images
    expected: dict[tuple[int, int], list[tuple[int, str]]] = {}
    for image, target, predicted, pixels in zip(
        predictions.image, predictions.target, predictions.predicted, predictions.pixels, strict=True
    ):
        if target != predicted and predictions.images[image] in shown:
            expected.setdefault((int(target), int(predicted)), []).append((-int(pixels), predictions.images[image]))
    assert {cell: [image.name for image in images] for cell, images in cells.items()} == {
        cell: [name for _, name in sorted(found, key=lambda item: item[0])] for cell, found in expected.items()
    }
    assert cells


def test_an_image_that_cannot_be_opened_is_named_and_left_out(given: Any, task: SegmentationTask) -> None:
    worst = _part(_sections(given)["mistakes"], GalleryPart).images[0].name
    (path,) = [path for path in task.val_set.images.images if path.as_posix().endswith(worst)]
    content = path.read_bytes()
    path.write_bytes(content[:50])
    try:
        sections = _sections(given)
    finally:
        path.write_bytes(content)
    names = [image.name for image in _part(sections["mistakes"], GalleryPart).images]
    assert worst not in names
    assert len(names) == 3
    assert worst in sections["images-not-shown"].parts[0].lines[0]


def test_an_image_is_drawn_for_a_comparison_of_runs(given: Any) -> None:
    shown = compared_image(given)(0)
    assert shown is not None
    assert [shot.label for shot in shown.thumbnails][:2] == ["truth", "prediction"]


def test_an_error_map_tells_right_wrong_and_ignored_pixels_apart() -> None:
    image = Image.new("RGB", (30, 20), "white")
    target = np.zeros((20, 30), dtype=np.int32)
    target[:, 20:] = -1
    predicted = np.zeros_like(target)
    predicted[:, 10:] = 1
    pixels = np.asarray(error_map(image, target, predicted)).astype(int)
    right, wrong, ignored = pixels[:, :70], pixels[:, 85:150], pixels[:, 165:]
    assert len(np.unique(right.reshape(-1, 3), axis=0)) == 1
    assert (right[0, 0] > RIGHT).all()
    assert wrong[0, 0, 0] - wrong[0, 0, 2] > 100 > abs(WRONG[0] - wrong[0, 0, 0])
    assert len(np.unique(ignored.reshape(-1, 3), axis=0)) == 2  # hatched
    shown = np.asarray(overlay(image, target))
    assert len(np.unique(shown[:, :150].reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(shown[:, 165:].reshape(-1, 3), axis=0)) == 2


def test_the_sample_sheet_shows_crops_with_their_label_maps(task: SegmentationTask) -> None:
    sheet = sample_sheet(task, 3)
    assert len(sheet) == 3
    assert [file.label for file in sheet[0].thumbnails] == ["image", "label map"]
    assert "%" in sheet[0].caption[0]
    assert sheet == sample_sheet(task, 3)


def test_classes_are_named_where_they_are() -> None:
    target = np.zeros((40, 40), dtype=np.int32)
    target[:, 30:] = 1
    plain, named = (
        np.asarray(overlay(Image.new("RGB", (40, 40)), target, class_names=names)) for names in (None, ("sky", "road\n"))
    )
    rows, columns = np.nonzero((plain != named).any(axis=2))
    assert columns.min() < 120 < columns.max()
    assert rows.min() > 100  # in the middle, both
    assert rows.max() < 140


def test_names_of_classes_cover_no_other() -> None:
    target = np.zeros((40, 40), dtype=np.int32)
    target[16:24, 16:24] = 1  # in the middle of the other class
    named = np.asarray(overlay(Image.new("RGB", (40, 40)), target, opacity=0.0, class_names=("sky", "road")))
    band = (named == class_colour(0)).all(axis=2), (named == class_colour(1)).all(axis=2)
    assert all(part.any() for part in band)
    boxes = [(rows.min(), rows.max(), columns.min(), columns.max()) for rows, columns in map(np.nonzero, band)]
    (top, bottom, left, right), (other_top, other_bottom, other_left, other_right) = boxes
    assert top > other_bottom or other_top > bottom or left > other_right or other_left > right
