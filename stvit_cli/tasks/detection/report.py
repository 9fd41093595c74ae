"""A detector's part of a report: metrics with intervals, classes, curves, confusions, errors, images. K classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from stvit_cli.data.coco import DetectionEvalSet
from stvit_cli.tasks.bootstrap import intervals
from stvit_cli.tasks.detection.analysis import DetectionAnalysis
from stvit_cli.tasks.detection.errors import ERROR_TYPES, MISSED
from stvit_cli.tasks.detection.predictions import DetectionPredictions
from stvit_cli.tasks.detection.shown_images import SHOWN_SCORE, DetectionImages
from stvit_cli.tasks.detection.statistics import AT_50, AT_75, PREFIXES
from stvit_cli.tasks.detection.thresholds import SCORES, score_curves
from stvit_cli.tasks.report_parts import (
    ChartPart,
    Column,
    GalleryPart,
    MatrixPart,
    Metric,
    MetricsPart,
    Part,
    ReportSection,
    Series,
    TablePart,
    TextPart,
)
from stvit_cli.tasks.report_texts import defined, intervals_note, not_shown_sections
from stvit_cli.tasks.spec import ReportInput

MEANINGS = {
    "ap": "average precision at IoU 0.5 to 0.95, COCO's main metric",
    "ap50": "average precision at IoU 0.5",
    "ap75": "average precision at IoU 0.75",
    "ar_100": "average recall at IoU 0.5 to 0.95, of 100 detections an image",
}
"""What each metric is, for boxes and for masks."""

SIZES = {
    "all": "all",
    "small": "small, up to 32 × 32 pixels",
    "medium": "medium",
    "large": "large, from 96 × 96 pixels",
}
"""COCO's sizes of objects."""

NOTED_BIAS = 0.1
"""Of box AP, in points of percent: the page says that resamples shift it."""

MOST_CURVES = 10
"""Classes of a chart."""


def detection_report(given: ReportInput) -> Iterator[ReportSection]:
    """Yield the sections of a report; see `tasks.spec.TaskSpec`."""
    predictions = given.predictions
    assert isinstance(predictions, DetectionPredictions)
    images = cast(DetectionEvalSet, given.evaluation.val_set).images
    analysis = DetectionAnalysis(predictions)
    if not analysis.kinds:
        shown = DetectionImages(images, predictions, SHOWN_SCORE)
        yield without_annotations(predictions, shown, given.max_images)
    else:
        shown = DetectionImages(images, predictions, analysis.score_threshold, analysis.errors)
        yield metrics_section(analysis)
        yield classes_section(analysis)
        yield curves_section(analysis)
        yield confusion_section(analysis, shown, given.max_images)
        yield errors_section(analysis)
        yield mistakes_section(analysis, shown, given.max_images)
    yield from not_shown_sections(shown.problems())


def metrics_section(analysis: DetectionAnalysis) -> ReportSection:
    """Return the metrics with their intervals, and those by size of the objects."""
    predictions, statistics = analysis.predictions, analysis.statistics()
    num_images = len(predictions.images)
    of_metric = intervals(statistics, num_images)
    metrics = [
        Metric(name, defined(found.value), defined(found.low), defined(found.high), "%", MEANINGS[name.split("_", 1)[1]])
        for name, found in of_metric.items()
    ]
    note = intervals_note(statistics, num_images)
    shift = of_metric["box_ap"].bias
    if abs(shift) >= NOTED_BIAS:
        what, where = ("higher", "high") if shift > 0 else ("lower", "low")
        note += (
            f" Where classes have few objects, resamples shift AP: their mean box AP is {abs(shift):.1f} {what}, "
            f"and its interval lies about that much too {where}."
        )
    return ReportSection("metrics", "Metrics", [MetricsPart(metrics, note=note), _sizes(analysis)])


def _sizes(analysis: DetectionAnalysis) -> TablePart:
    found = {kind: analysis.by_size(kind) for kind in analysis.kinds}
    columns = [Column("objects"), Column("number", "count")]
    for kind in analysis.kinds:
        columns += [Column(f"{PREFIXES[kind]} AP", "percent"), Column(f"{PREFIXES[kind]} AR", "percent")]
    rows: list[list[str | float | int | None]] = []
    for size, name in SIZES.items():
        values = [value for part in found.values() for value in (part[size].ap, part[size].recall)]
        rows.append([name, found["bbox"][size].num_objects, *map(defined, values)])
    return TablePart(columns, rows, "By size of the objects", "COCO's sizes: the area of the object in pixels of the image file.")


def classes_section(analysis: DetectionAnalysis) -> ReportSection:
    """Return a table of the classes."""
    names, counts = analysis.predictions.class_names, analysis.boxes.num_objects
    columns = [
        Column("class"),
        Column("objects", "count"),
        Column("AP", "percent"),
        Column("AP50", "percent"),
        Column("AR", "percent"),
    ]
    precision, recall = analysis.precision("bbox"), analysis.recall("bbox")
    values = [precision.mean(axis=(0, 2)), precision[AT_50].mean(axis=1), recall.mean(axis=0)]
    if "segm" in analysis.kinds:
        columns += [Column("mask AP", "percent"), Column("mask AP50", "percent")]
        masks = analysis.precision("segm")
        values += [masks.mean(axis=(0, 2)), masks[AT_50].mean(axis=1)]
    columns += [Column(name, "percent") for name in ("precision", "recall", "F1")] + [Column("at score", "number")]
    rows: list[list[str | float | int | None]] = []
    for label, name in enumerate(names):
        curves = score_curves(analysis.boxes, label)
        best = curves.best
        at_best: list[float | None] = [None] * 4
        if counts[label] and not np.isnan(curves.f1).all():
            parts = (curves.precision, curves.recall, curves.f1)
            at_best = [*(_percent(part[best]) for part in parts), float(SCORES[best])]
        rows.append([name, int(counts[label]), *(_percent(part[label]) for part in values), *at_best])
    without = int((counts == 0).sum())
    note = "Precision, recall and F1 are at an IoU of 0.5, from the score on where F1 of the class is largest."
    note += f" {_classes(without)} without objects in these images: no metrics, and left out of all means." if without else ""
    return ReportSection("classes", "Classes", [TablePart(columns, rows, note=note)])


def curves_section(analysis: DetectionAnalysis) -> ReportSection:
    """Return precision over recall, and precision, recall and F1 over the score."""
    precision, recalls = analysis.precision("bbox"), np.linspace(0, 1, 101).tolist()
    labels = np.flatnonzero(analysis.boxes.num_objects > 0)
    overall = [
        Series(f"IoU {iou}", recalls, precision[at][labels].mean(axis=0).tolist())
        for iou, at in (("0.5", AT_50), ("0.75", AT_75))
    ]
    parts: list[Part] = [_score_chart(analysis), _recall_chart("Precision over recall, mean of all classes", overall)]
    if len(labels) > 1:
        lowest = labels[np.argsort(precision[AT_50][labels].mean(axis=1), kind="stable")][:MOST_CURVES].tolist()
        note = "" if len(labels) <= MOST_CURVES else f"The {MOST_CURVES} classes with the lowest AP50 of {len(labels)}."
        for iou, at in (("0.5", AT_50), ("0.75", AT_75)):
            series = [Series(analysis.predictions.class_names[label], recalls, precision[at][label].tolist()) for label in lowest]
            parts.append(_recall_chart(f"Precision over recall by class, IoU {iou}", series, note))
    return ReportSection(
        "precision-recall",
        "Precision and recall",
        parts,
        "A lower score threshold finds more objects (recall) and reports more that are none (precision). "
        "The area under precision over recall is AP.",
    )


def _recall_chart(title: str, series: Sequence[Series], note: str = "") -> ChartPart:
    return ChartPart(title, "recall", "precision", series, note, (0, 1), (0, 1))


def _score_chart(analysis: DetectionAnalysis) -> ChartPart:
    curves, scores = analysis.curves, SCORES.tolist()
    values = {"F1": curves.f1, "precision": curves.precision, "recall": curves.recall}
    series = [
        Series(name, scores, [defined(value) for value in part.tolist()], best=curves.best if name == "F1" else None)
        for name, part in values.items()
    ]
    threshold = analysis.score_threshold
    note = (
        f"Recommended score threshold: {threshold:.2f}, with the largest F1 of all objects together. "
        f"As an option: stvit predict IMAGE --weights RUN --score-threshold {threshold:.2f}"
    )
    title = "Precision, recall and F1 over the score threshold, IoU 0.5"
    return ChartPart(title, "score threshold", "", series, note, (0, 1), (0, 1))


def confusion_section(analysis: DetectionAnalysis, shown: DetectionImages, max_images: int) -> ReportSection:
    """Return the confusion matrix of the detections with the background."""
    names, pairs = list(analysis.predictions.class_names), analysis.pairs
    order = np.argsort(-pairs.score, kind="stable")  # the most confident confusions first
    images = shown.cells(pairs.true[order], pairs.predicted[order], pairs.image[order], max_images)
    background = "background" if "background" not in names else "(no object)"
    matrix = MatrixPart(
        "Objects and detections",
        [*names, background],
        pairs.matrix(len(names)).tolist(),
        images,
        "objects",
        f"Detections with a score of at least {analysis.score_threshold:.2f}, at an IoU of 0.5. In the last row are detections "
        "where no object is, in the last column objects that were not found.",
    )
    return ReportSection("confusion", "Confusion matrix", [matrix])


def errors_section(analysis: DetectionAnalysis) -> ReportSection:
    """Return the types of errors, with what each costs, and their numbers by class."""
    errors, predictions, threshold = analysis.errors, analysis.predictions, analysis.score_threshold
    counts, gains = errors.counts(), analysis.ap_gains()
    columns = [
        Column("type"),
        Column("errors", "count"),
        Column("of all", "percent"),
        Column("dAP", "percent"),
        Column("meaning"),
    ]
    total = max(sum(counts), 1)
    rows: list[list[str | float | int | None]] = [
        [kind.name, count, 100 * count / total, gain, kind.meaning]
        for kind, count, gain in zip(ERROR_TYPES, counts, gains, strict=True)
    ]
    note = (
        f"Errors are counted from a score of {threshold:.2f} on. dAP is what box AP50 would gain were the errors of this type "
        "alone corrected, of all detections; gains do not add up. Detections in a crowd are no errors."
    )
    by_class: list[list[str | float | int | None]] = []
    for label, name in enumerate(predictions.class_names):
        of_class = errors.kind[predictions.detections.label == label]
        missed = int(errors.missed[predictions.objects.label == label].sum())
        by_class.append([name, *(int((of_class == kind).sum()) for kind in range(MISSED)), missed])
    class_columns = [Column("class"), *(Column(kind.label, "count") for kind in ERROR_TYPES)]
    tables = [
        TablePart(columns, rows, note=note),
        TablePart(class_columns, by_class, "By class", "The class of the detection; of a missed object, its own."),
    ]
    return ReportSection("errors", "Types of errors", tables, "As TIDE counts them (Bolya et al., ECCV 2020).")


def mistakes_section(analysis: DetectionAnalysis, shown: DetectionImages, max_images: int) -> ReportSection:
    """Return the images with the most errors."""
    numbers, predictions = analysis.errors_of_images, analysis.predictions
    order = np.argsort(-numbers, kind="stable")[: int((numbers > 0).sum())]
    is_empty = np.bincount(predictions.objects.image, minlength=len(numbers)) == 0
    note = f"Detections with a score of at least {analysis.score_threshold:.2f}. Crowds are drawn with a thin line."
    if is_empty.any():
        wrong = int((numbers[is_empty] > 0).sum())
        note += f" Of {int(is_empty.sum())} images without objects, {wrong} have detections."
    gallery = GalleryPart("Images with the most errors", shown.first(order.tolist(), max_images), len(order), note)
    return ReportSection("mistakes", "Mistakes", [gallery])


def without_annotations(predictions: DetectionPredictions, shown: DetectionImages, max_images: int) -> ReportSection:
    """Return what can be said of detections in images that nothing is annotated in."""
    detections = predictions.detections
    kept = detections.score >= SHOWN_SCORE
    counts = [np.bincount(detections.label[chosen], minlength=len(predictions.class_names)) for chosen in (kept, kept | True)]
    columns = [Column("class"), Column(f"detections from a score of {SHOWN_SCORE}", "count"), Column("all detections", "count")]
    rows: list[list[str | float | int | None]] = [
        [name, *(int(part[label]) for part in counts)] for label, name in enumerate(predictions.class_names)
    ]
    per_image = np.bincount(detections.image[kept], minlength=len(predictions.images))
    order = np.argsort(-per_image, kind="stable")[: int((per_image > 0).sum())].tolist()
    text = f"Nothing is annotated in these {len(predictions.images)} images: there are no metrics."
    gallery = GalleryPart("Images with the most detections", shown.first(order, max_images), len(order))
    return ReportSection("detections", "Detections", [TextPart([text], kind="warning"), TablePart(columns, rows), gallery])


def _percent(value: float) -> float | None:
    return defined(100 * float(value))


def _classes(count: int) -> str:
    return "1 class is" if count == 1 else f"{count} classes are"
