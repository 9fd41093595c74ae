"""A classifier's part of a report: its numbers are scikit-learn's and torchmetrics', and it opens the images that it shows."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve, precision_recall_fscore_support
from torch import nn
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from stvit_cli.analysis.report.page import render
from stvit_cli.data.classification import EvalSet
from stvit_cli.recipe import DataSection, EvalSection, Recipe
from stvit_cli.tasks.base import KeepsPredictions
from stvit_cli.tasks.classification.data import build_eval_set
from stvit_cli.tasks.classification.predictions import ClassificationPredictions, MultiLabelPredictions
from stvit_cli.tasks.classification.report import classification_report
from stvit_cli.tasks.classification.task import ClassificationEvaluation
from stvit_cli.tasks.report_parts import ChartPart, GalleryPart, MatrixPart, MetricsPart, ReportSection, TablePart, TextPart
from stvit_cli.tasks.spec import ReportInput, Trained
from tests.helpers.predictions import HOSTILE, MadeImages, classification_predictions, multi_label_predictions, probabilities_of


def report_of(
    predictions: ClassificationPredictions | MultiLabelPredictions, images: MadeImages | None = None, max_images: int = 6
) -> dict[str, ReportSection]:
    images = images or MadeImages(predictions.target, predictions.class_names)
    val_set = EvalSet(images, lambda image: torch.zeros(3, 8, 8))  # type: ignore[arg-type]
    evaluation = ClassificationEvaluation(val_set, isinstance(predictions, MultiLabelPredictions))
    trained = Trained(nn.Identity(), None, None)  # type: ignore[arg-type]  # this report computes nothing with it
    given = ReportInput(Recipe(), evaluation, predictions, trained, torch.device("cpu"), max_images)  # type: ignore[arg-type]
    sections = list(classification_report(given))
    assert len({section.id for section in sections}) == len(sections)
    return {section.id: section for section in sections}


def part_of(section: ReportSection, kind: type[Any]) -> Any:
    return next(part for part in section.parts if isinstance(part, kind))


def by_class(table: TablePart) -> dict[str, dict[str, Any]]:
    names = [column.name for column in table.columns]
    return {row[0]: dict(zip(names, row, strict=True)) for row in table.rows}  # type: ignore[misc]


@pytest.fixture(scope="module")
def made() -> tuple[ClassificationPredictions, dict[str, ReportSection]]:
    """Predictions of 300 images and 7 classes, of which the last has no image, and their report."""
    predictions = classification_predictions(*probabilities_of(300, 7, skill=1.5))
    return predictions, report_of(predictions)


def test_sections_and_their_order(made: tuple[ClassificationPredictions, dict[str, ReportSection]]) -> None:
    assert list(made[1]) == ["metrics", "confusion", "classes", "calibration", "mistakes", "uncertain"]


def test_confusion_matrix_is_that_of_scikit_learn(made: tuple[ClassificationPredictions, dict[str, ReportSection]]) -> None:
    predictions, sections = made
    matrix = part_of(sections["confusion"], MatrixPart)
    expected = confusion_matrix(predictions.target, predictions.labels[:, 0], labels=range(7))
    assert matrix.class_names == predictions.class_names
    assert np.array_equal(matrix.counts, expected)
    taken_for = by_class(part_of(sections["classes"], TablePart))["class 0"]["most often taken for"]
    mistakes = np.where(np.arange(7) == 0, 0, expected[0])
    assert taken_for == f"class {mistakes.argmax()}: {mistakes.max()} images"
    for (row, column), images in matrix.images.items():
        assert len(images) <= expected[row, column]
        for image in images:
            index = list(predictions.images).index(image.name)
            assert (predictions.target[index], predictions.labels[index, 0]) == (row, column)
            assert image.is_wrong == (row != column)
            assert image.caption[0].startswith(f"truth: {predictions.class_names[row]}")
            assert image.caption[1].startswith(f"predicted: {predictions.class_names[column]} ")


def test_classes_have_scikit_learns_precision_recall_and_f1(
    made: tuple[ClassificationPredictions, dict[str, ReportSection]],
) -> None:
    predictions, sections = made
    rows = by_class(part_of(sections["classes"], TablePart))
    expected = precision_recall_fscore_support(
        predictions.target, predictions.labels[:, 0], labels=range(7), zero_division=np.nan
    )
    for label, name in enumerate(predictions.class_names):
        for column, values in zip(("precision", "recall", "F1"), expected[:3], strict=True):
            value = math.nan if rows[name][column] is None else rows[name][column]
            if column != "F1" or not math.isnan(values[label]):
                assert value == pytest.approx(100 * values[label], nan_ok=True), (name, column)
        assert rows[name]["images"] == expected[3][label]
        assert rows[name]["predicted"] == (predictions.labels[:, 0] == label).sum()
    warning = part_of(sections["classes"], TextPart)
    assert warning.kind == "warning"
    assert "1 of the 7 classes: class 6" in warning.lines[0]


def test_metrics_have_intervals_around_them(made: tuple[ClassificationPredictions, dict[str, ReportSection]]) -> None:
    part = part_of(made[1]["metrics"], MetricsPart)
    metrics = {metric.name: metric for metric in part.metrics}
    top1 = metrics["top1"]
    assert top1.value == 100 * np.mean(made[0].target_rank == 0)
    half = 1.96 * (top1.value * (100 - top1.value) / 300) ** 0.5
    assert (top1.value - top1.low, top1.high - top1.value) == pytest.approx((half, half), rel=0.2)
    assert metrics["ece"].low is None
    assert metrics["loss"].unit == ""
    assert "300 images" in part.note


def test_calibration_is_that_of_torchmetrics(made: tuple[ClassificationPredictions, dict[str, ReportSection]]) -> None:
    probabilities, target = probabilities_of(300, 7, skill=1.5)
    theirs = multiclass_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(target), 7, n_bins=15)
    section = made[1]["calibration"]
    metrics = {metric.name: metric.value for metric in part_of(section, MetricsPart).metrics}
    assert metrics["ece"] == pytest.approx(100 * float(theirs), abs=1e-3)
    assert metrics["ece"] == next(one.value for one in part_of(made[1]["metrics"], MetricsPart).metrics if one.name == "ece")
    diagram, histogram = (part for part in section.parts if isinstance(part, ChartPart))
    assert sum(histogram.series[0].y) == 300
    right = sum(count * (share or 0) / 100 for count, share in zip(histogram.series[0].y, diagram.series[0].y, strict=True))
    assert right == pytest.approx((made[0].target_rank == 0).sum())


@pytest.mark.parametrize(("confidence", "word"), [(0.95, " overconfident"), (0.55, " underconfident"), (0.8, "chance")])
def test_a_sentence_says_whether_confidence_is_too_high(confidence: float, word: str) -> None:
    scores = np.full((200, 2), [confidence, 1 - confidence], np.float32)
    target = np.array([0, 0, 0, 0, 1] * 40)
    section = report_of(classification_predictions(scores, target))["calibration"]
    assert word in part_of(section, TextPart).lines[0]


def test_mistakes_are_the_most_confident_and_uncertain_images_the_least(
    made: tuple[ClassificationPredictions, dict[str, ReportSection]],
) -> None:
    predictions, sections = made
    wrong = np.flatnonzero(predictions.target_rank > 0)
    gallery = part_of(sections["mistakes"], GalleryPart)
    worst = sorted(wrong, key=lambda index: -predictions.scores[index, 0])[:6]
    assert [image.name for image in gallery.images] == [predictions.images[index] for index in worst]
    assert gallery.total == len(wrong)
    assert all(image.is_wrong for image in gallery.images)
    uncertain = part_of(sections["uncertain"], GalleryPart)
    least = int(predictions.scores[:, 0].argmin())
    assert (
        uncertain.images[0].caption[2]
        == f"then: class {predictions.labels[least, 1]} ({100 * predictions.scores[least, 1]:.1f} %)"
    )
    assert uncertain.images[0].name == predictions.images[int(predictions.scores[:, 0].argmin())]
    assert uncertain.total == 300
    assert max(Image.open(io.BytesIO(uncertain.images[0].thumbnails[0].data)).size) == 160


def test_an_image_is_opened_once_and_only_where_it_is_shown() -> None:
    predictions = classification_predictions(*probabilities_of(2000, 30, skill=1.0))
    images = MadeImages(predictions.target, predictions.class_names)
    sections = report_of(predictions, images, max_images=5)
    galleries = [part_of(sections[name], GalleryPart) for name in ("mistakes", "uncertain")]
    shown = {image.name for part in galleries for image in part.images}
    cells = part_of(sections["confusion"], MatrixPart).images.values()
    shown |= {image.name for images in cells for image in images}
    assert sum(len(images) for images in cells) == 30
    assert sorted(images.opened) == sorted(int(name.removesuffix(".png")) for name in shown)


def test_unreadable_images_are_left_out_with_a_note() -> None:
    predictions = classification_predictions(*probabilities_of(40, 3, skill=0.5))
    wrong = np.flatnonzero(predictions.target_rank > 0)
    first = int(wrong[np.argmax(predictions.scores[wrong, 0])])
    sections = report_of(predictions, MadeImages(predictions.target, predictions.class_names, [first]), max_images=3)
    gallery = part_of(sections["mistakes"], GalleryPart)
    assert len(gallery.images) == 3
    assert predictions.images[first] not in [image.name for image in gallery.images]
    lines = part_of(sections["images-not-shown"], TextPart).lines
    assert lines == [
        f"Not shown, as they cannot be opened now: {first}.png.",
        f"The first: /data/{first}.png: not an image.",
    ]


def test_an_image_that_is_gone_hides_no_other() -> None:
    predictions = classification_predictions(*probabilities_of(40, 3, skill=0.5))
    images = MadeImages(predictions.target[1:], predictions.class_names, first=1)  # 0.png was removed
    sections = report_of(predictions, images, max_images=40)
    shown = part_of(sections["uncertain"], GalleryPart).images
    assert {image.name for image in shown} == set(predictions.images[1:])
    for image in shown:
        color = Image.open(io.BytesIO(image.thumbnails[0].data)).convert("RGB").getpixel((5, 5))
        assert isinstance(color, tuple)
        assert abs(color[0] - 37 * int(image.name.removesuffix(".png")) % 256) <= 8
    assert part_of(sections["images-not-shown"], TextPart).lines[1] == "The first: 0.png: it is no longer in the data set."


def test_images_of_another_class_are_not_shown() -> None:
    predictions = classification_predictions(*probabilities_of(40, 3, skill=0.5))
    images = MadeImages((predictions.target + 1) % 3, predictions.class_names)
    sections = report_of(predictions, images)
    assert images.opened == []
    assert "another class than when it was predicted" in part_of(sections["images-not-shown"], TextPart).lines[1]


def test_few_images_are_tried_where_the_disk_is_gone() -> None:
    predictions = classification_predictions(*probabilities_of(1000, 10, skill=0.5))
    images = MadeImages(predictions.target, predictions.class_names, unreadable=range(1000))
    sections = report_of(predictions, images)
    assert len(images.opened) == 50
    assert "no more were tried" in part_of(sections["images-not-shown"], TextPart).lines[0]


def test_very_many_classes_are_reduced_to_those_that_are_confused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stvit_cli.tasks.classification.confusion.MAX_CLASSES", 100)
    predictions = classification_predictions(*probabilities_of(500, 130, skill=3.0))
    sections = report_of(predictions)
    matrix = part_of(sections["confusion"], MatrixPart)
    assert len(matrix.class_names) == 100
    assert matrix.class_names[-1] == "31 other classes"
    assert np.sum(matrix.counts) == 500
    assert "99 of 130 classes" in matrix.note
    assert len(part_of(sections["classes"], TablePart).rows) == 130


def test_no_mistake_is_said_and_bounded() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8]] * 10, np.float32)
    sections = report_of(classification_predictions(scores, np.array([0, 1] * 10)))
    assert part_of(sections["mistakes"], GalleryPart).images == []
    assert part_of(sections["mistakes"], GalleryPart).total == 0
    assert "would have top-1 50.0 %" in part_of(sections["metrics"], TextPart).lines[0]
    metrics = {metric.name: metric for metric in part_of(sections["metrics"], MetricsPart).metrics}
    exact = binomtest(20, 20).proportion_ci()
    assert (metrics["top1"].low, metrics["top1"].high) == pytest.approx((100 * exact.low, 100))
    assert metrics["f1_macro"].low is None  # an interval without width would say that it is certain


def test_one_image_has_a_report_without_intervals() -> None:
    sections = report_of(classification_predictions(np.array([[0.9, 0.1]], np.float32), np.array([1])))
    metrics = {metric.name: (metric.low, metric.high) for metric in part_of(sections["metrics"], MetricsPart).metrics}
    assert metrics.pop("top1") == pytest.approx((0, 97.5))
    assert set(metrics.values()) == {(None, None)}
    assert part_of(sections["mistakes"], GalleryPart).total == 1


def test_hostile_class_names_are_text_on_the_page() -> None:
    predictions = classification_predictions(*probabilities_of(30, 3, skill=0.5), class_names=[HOSTILE, "a\nb", "c"])
    sections = report_of(predictions)
    assert HOSTILE in by_class(part_of(sections["classes"], TablePart))
    page = render("title", "subtitle", list(sections.values()))
    assert "<img" not in page
    assert page.count("</script>") == render("title", "subtitle", []).count("</script>")
    assert page == render("title", "subtitle", list(report_of(predictions).values()))


@pytest.fixture(scope="module")
def several() -> tuple[MultiLabelPredictions, dict[str, ReportSection]]:
    """Predictions with several labels: 80 images, 4 classes, of which the last has no image, and their report."""
    predictions = multi_label_predictions(80, 4)
    return predictions, report_of(predictions)


def test_several_labels_have_scikit_learns_metrics_of_each_class(
    several: tuple[MultiLabelPredictions, dict[str, ReportSection]],
) -> None:
    predictions, sections = several
    assert list(sections) == ["metrics", "classes", "curves-pr", "calibration", "mistakes"]
    loss = next(metric for metric in part_of(sections["metrics"], MetricsPart).metrics if metric.name == "loss")
    assert loss.note == "mean binary cross-entropy"
    rows = by_class(part_of(sections["classes"], TablePart))
    for label, name in enumerate(predictions.class_names[:3]):
        target, scores, row = predictions.target[:, label], predictions.scores[:, label], rows[name]
        precision, recall, f1, _ = precision_recall_fscore_support(target, scores > 0.5, average="binary")
        assert row["AP"] == pytest.approx(100 * average_precision_score(target, scores))
        assert (row["precision"], row["recall"], row["F1"]) == pytest.approx((100 * precision, 100 * recall, 100 * f1))
        tn, fp, fn, tp = confusion_matrix(target, scores > 0.5).ravel().tolist()
        assert (row["right (TP)"], row["wrong (FP)"], row["missed (FN)"], row["rightly absent (TN)"]) == (tp, fp, fn, tn)
        precisions, recalls, thresholds = precision_recall_curve(target, scores)
        best = (2 * precisions * recalls / np.maximum(precisions + recalls, 1e-9))[:-1]
        assert row["F1 there"] == pytest.approx(100 * best.max())
        assert row["best threshold"] in thresholds[np.isclose(best, best.max())]
    assert rows["class 3"]["best threshold"] is None
    assert "class 3" in part_of(sections["classes"], TextPart).lines[0]


def test_curves_of_several_labels_are_scikit_learns(several: tuple[MultiLabelPredictions, dict[str, ReportSection]]) -> None:
    predictions, sections = several
    series = {one.name.split(" (")[0]: one for one in part_of(sections["curves-pr"], ChartPart).series}
    assert set(series) == {"all classes", "class 0", "class 1", "class 2"}
    precisions, recalls, _ = precision_recall_curve(predictions.target[:, 0], predictions.scores[:, 0])
    points = {(round(100 * r, 2), round(100 * p, 2)) for r, p in zip(recalls, precisions, strict=True)}
    drawn = set(zip(series["class 0"].x, series["class 0"].y, strict=True))
    assert drawn <= points
    assert len(drawn) > 10


def test_decisions_of_several_labels_have_torchmetrics_calibration_error(
    several: tuple[MultiLabelPredictions, dict[str, ReportSection]],
) -> None:
    predictions, sections = several
    metrics = {metric.name: metric.value for metric in part_of(sections["calibration"], MetricsPart).metrics}
    expected = binary_calibration_error(
        torch.from_numpy(predictions.scores).ravel(), torch.from_numpy(predictions.target).ravel().int(), n_bins=15
    )
    assert metrics["ece"] == pytest.approx(100 * float(expected), abs=1e-3)


def test_mistakes_of_several_labels(several: tuple[MultiLabelPredictions, dict[str, ReportSection]]) -> None:
    predictions, sections = several
    extra, missed = (part for part in sections["mistakes"].parts if isinstance(part, GalleryPart))
    wrong = (predictions.scores > 0.5) & ~predictions.target
    assert extra.total == wrong.any(1).sum()
    assert f"{wrong.sum()} labels of" in extra.note
    assert missed.total == ((predictions.scores <= 0.5) & predictions.target).any(1).sum()
    worst = np.where(predictions.target, 0, predictions.scores).max()
    assert f"{100 * worst:.1f} %" in extra.images[0].caption[1]
    least = np.where(predictions.target, predictions.scores, 1).min()
    assert f"{100 * least:.1f} %" in missed.images[0].caption[1]


def write_idx(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 5, 4), dtype=np.uint8)
    for what, array in (("images", pixels), ("labels", np.arange(12, dtype=np.uint8) % 2)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
        (folder / f"train-{what}-idx{array.ndim}-ubyte").write_bytes(header + array.tobytes())


def write_embedded(folder: Path) -> None:
    images = []
    for number in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (5, 4), (20 * number, 0, 0)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    parquet.write_table(arrow.table({"image": images, "label": ["a", "b"] * 6}), folder / "train.parquet")


@pytest.mark.parametrize("kind", ["digits", "idx", "table", "timm"])
def test_images_in_memory_are_shown_as_they_are(kind: str, tmp_path: Path, image_folder: Path) -> None:
    """Each image of the report has the pixels that the data set opens, not normalized ones."""
    write = {"idx": write_idx, "table": write_embedded}.get(kind)
    if write is not None:
        write(tmp_path)
    section = {
        "digits": DataSection(kind="digits"),
        "idx": DataSection(kind="idx", dir=str(tmp_path), val_fraction=0.5),
        "table": DataSection(kind="table", dir=str(tmp_path), val_fraction=0.5),
        "timm": DataSection(kind="timm", dir=str(image_folder), name="torch/image_folder", val_split="val"),
    }[kind].model_copy(update={"image_size": 32})
    val_set = build_eval_set(section, EvalSection())
    evaluation, few = ClassificationEvaluation(val_set), range(min(len(val_set), 30))
    evaluator = evaluation.evaluator()
    with torch.no_grad():
        torch.manual_seed(0)
        model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, len(val_set.images.class_names)))
        evaluator.update(model, evaluation.collate_eval([val_set[index] for index in range(len(val_set))]))
    assert isinstance(evaluator, KeepsPredictions)
    predictions = evaluator.predictions([evaluator.state()])
    assert predictions is not None
    trained = Trained(nn.Identity(), None, None)  # type: ignore[arg-type]
    sections = {
        one.id: one
        for one in classification_report(ReportInput(Recipe(), evaluation, predictions, trained, torch.device("cpu"), len(few)))
    }
    assert "images-not-shown" not in sections
    gallery = part_of(sections["uncertain"], GalleryPart)
    assert len(gallery.images) == len(few)
    for image in gallery.images:
        index = list(predictions.images).index(image.name)
        source = np.asarray(val_set.images.open(index), dtype=int)
        shown = np.asarray(Image.open(io.BytesIO(image.thumbnails[0].data)).convert("RGB"), dtype=int)
        assert shown.shape == source.shape
        assert shown.mean((0, 1)) == pytest.approx(source.mean((0, 1)), abs=6)  # lossy
