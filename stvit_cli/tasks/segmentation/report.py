"""A segmenter's part of a report: metrics with intervals, classes, confusion in pixels, images.

K classes, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from stvit_cli.data.segmentation import SegmentationEvalSet
from stvit_cli.data.thumbnails import thumbnail
from stvit_cli.errors import UserError
from stvit_cli.tasks.bootstrap import intervals
from stvit_cli.tasks.report_parts import (
    ChartPart,
    Column,
    GalleryPart,
    MatrixPart,
    Metric,
    MetricsPart,
    ReportSection,
    Series,
    ShownImage,
    TablePart,
    Thumbnail,
)
from stvit_cli.tasks.report_texts import defined, failure_lines, intervals_note, not_shown_sections
from stvit_cli.tasks.segmentation.drawing import SIDE, error_map, overlay
from stvit_cli.tasks.segmentation.predict import predict_again
from stvit_cli.tasks.segmentation.predictions import SegmentationPredictions
from stvit_cli.tasks.segmentation.sample_sheet import class_shares
from stvit_cli.tasks.segmentation.statistics import class_accuracy, class_iou, class_precision, confusion_matrix, image_iou
from stvit_cli.tasks.spec import ReportInput

MEANINGS = {
    "miou": "mean of the classes' intersection over union",
    "pixel_accuracy": "pixels with the right class",
    "class_accuracy": "mean of the classes' accuracy (recall)",
}
"""What each metric is."""

IMAGES_OF_A_CELL = 6
"""Of the images that the report shows, those that a cell of the confusion matrix has at most."""


def segmentation_report(given: ReportInput) -> Iterator[ReportSection]:
    """Yield the sections of a report; see `tasks.spec.TaskSpec`."""
    predictions = given.predictions
    assert isinstance(predictions, SegmentationPredictions)
    matrix = confusion_matrix(predictions)
    yield metrics_section(predictions)
    yield classes_section(predictions, matrix)
    note = "Pixels of all images; those that the label maps leave out are not counted."
    drawn = LabelMapImages(given)
    mistakes, shown = images_section(predictions, drawn, given.max_images)
    cells = images_of_cells(predictions, shown)
    title = "Pixels by true and predicted class"
    parts = [MatrixPart(title, predictions.class_names, matrix.tolist(), cells, what="pixels", note=note)]
    yield ReportSection("confusion", "Confusion matrix", parts)
    yield mistakes
    yield from not_shown_sections(drawn.problems())


def metrics_section(predictions: SegmentationPredictions) -> ReportSection:
    """Return the metrics with their intervals."""
    num_images, statistics = len(predictions.images), predictions.statistics()
    metrics = [
        Metric(name, defined(found.value), defined(found.low), defined(found.high), "%", MEANINGS[name])
        for name, found in intervals(statistics, num_images).items()
    ]
    return ReportSection("metrics", "Metrics", [MetricsPart(metrics, note=intervals_note(statistics, num_images))])


def classes_section(predictions: SegmentationPredictions, matrix: NDArray[np.int64]) -> ReportSection:
    """Return a table of the classes."""
    columns = [Column("class"), *(Column(name, "percent") for name in ("IoU", "accuracy", "precision"))]
    columns += [Column("pixels", "count"), Column("of all", "percent"), Column("images", "count")]
    values = (class_iou(matrix), class_accuracy(matrix), class_precision(matrix))
    pixels, total = matrix.sum(1), max(int(matrix.sum()), 1)
    shown = np.unique(np.stack([predictions.image.astype(np.int64), predictions.target.astype(np.int64)]), axis=1)[1]
    images = np.bincount(shown, minlength=len(matrix))
    rows: list[list[str | float | int | None]] = [
        [
            name,
            *(defined(float(part[label])) for part in values),
            int(pixels[label]),
            100 * int(pixels[label]) / total,
            int(images[label]),
        ]
        for label, name in enumerate(predictions.class_names)
    ]
    note = "Accuracy: pixels of a class that were found (recall). Precision: of the pixels said to be of it, those that are."
    absent = int(np.isnan(values[0]).sum())
    note += (
        f" Neither in these images nor predicted, and left out of the means: {absent} of {len(rows)} classes." if absent else ""
    )
    return ReportSection("classes", "Classes", [TablePart(columns, rows, note=note)])


def images_of_cells(predictions: SegmentationPredictions, shown: Sequence[ShownImage]) -> dict[tuple[int, int], list[ShownImage]]:
    """Return the images that are shown by the confusions in them, true and predicted class; most pixels first."""
    by_name = {image.name: image for image in shown}
    by_index = {index: by_name[name] for index, name in enumerate(predictions.images) if name in by_name}
    kept = (predictions.target != predictions.predicted) & np.isin(predictions.image, list(by_index))
    cells: dict[tuple[int, int], list[ShownImage]] = {}
    for entry in np.flatnonzero(kept)[np.argsort(-predictions.pixels[kept], kind="stable")].tolist():
        cell = cells.setdefault((int(predictions.target[entry]), int(predictions.predicted[entry])), [])
        if len(cell) < IMAGES_OF_A_CELL:
            cell.append(by_index[int(predictions.image[entry])])
    return cells


def images_section(
    predictions: SegmentationPredictions, drawn: LabelMapImages, max_images: int
) -> tuple[ReportSection, list[ShownImage]]:
    """Return the IoU of the images and those with the lowest, and these images."""
    iou = image_iou(predictions)
    order = np.argsort(iou, kind="stable")[: int((~np.isnan(iou)).sum())]  # NaN: without a pixel that counts
    counts, edges = np.histogram(iou[order], bins=20, range=(0, 100))
    centers = ((edges[1:] + edges[:-1]) / 2).tolist()
    note = "The mean IoU of the classes that are in an image or were predicted in it."
    empty = len(iou) - len(order)
    note += f" Without a pixel that counts, and left out: {empty} of {len(iou)} images." if empty else ""
    chart = ChartPart(
        "IoU of the images", "IoU in %", "images", [Series("images", centers, counts.tolist(), "bars")], note, (0, 100)
    )
    shown = drawn.first(order.tolist(), iou, max_images)
    gallery = GalleryPart(
        "Images with the lowest IoU",
        shown,
        len(order),
        "Error map: wrong pixels in red, right ones in green. Hatched: ignored. Predictions are computed again for these images.",
    )
    return ReportSection("mistakes", "Mistakes", [chart, gallery]), shown


class LabelMapImages:
    """Draws images of a validation set with their label maps; what the model says of them is computed again.

    Args:
        given: the data, and the trained model.

    Attributes:
        failures: why images could not be shown, by index.
    """

    def __init__(self, given: ReportInput) -> None:
        self._given, self.failures = given, dict[int, str]()
        self._set = cast(SegmentationEvalSet, given.evaluation.val_set)
        self.has_changed = len(self._set) != len(given.predictions.images)

    def first(self, order: Sequence[int], iou: Mapping[int, float] | NDArray[np.float64], limit: int) -> list[ShownImage]:
        """Return the first ``limit`` images of an order that can be opened; as many that cannot be are tried."""
        shown: list[ShownImage] = []
        for tried, index in enumerate(order):
            if len(shown) == limit or tried == 2 * limit or self.has_changed:
                break
            try:
                shown.append(self._show(index, float(iou[index])))
            except (UserError, OSError) as error:
                self.failures[index] = str(error)
        return shown

    def show(self, index: int, iou: float) -> ShownImage | None:
        """Return an image; None where it cannot be opened."""
        shown = self.first([index], {index: iou}, 1)
        return shown[0] if shown else None

    def problems(self) -> list[str]:
        """Return lines on what could not be shown."""
        names = self._given.predictions.images
        if self.has_changed:
            return [
                f"No image is shown: the data set has {len(self._set)} images now, the predictions are of {len(names)}. "
                "`stvit report RUN` after a new evaluation shows them."
            ]
        return failure_lines(names, self.failures)

    def _show(self, index: int, iou: float) -> ShownImage:
        predictions = self._given.predictions
        names = predictions.class_names
        image = self._set.images.open(index)
        target = self._set.images.labels(index, image.size)
        predicted = predict_again(self._given, self._model, index, image)
        drawings = [
            (overlay(image, target, class_names=names), "truth"),
            (overlay(image, predicted, class_names=names), "prediction"),
            (error_map(image, target, predicted), "error map"),
        ]
        thumbnails = [Thumbnail(thumbnail(drawing, SIDE), label) for drawing, label in drawings]
        caption = [f"IoU {iou:.1f} %", f"truth: {class_shares(target, names)}", f"prediction: {class_shares(predicted, names)}"]
        return ShownImage(predictions.images[index], thumbnails, caption)

    @cached_property
    def _model(self) -> torch.nn.Module:
        return self._given.trained.prepared(self._given.device, self._given.max_images, self._given.precision)


def compared_image(given: ReportInput) -> Callable[[int], ShownImage | None]:
    """Return what draws an image by its index; see `tasks.spec.TaskSpec`. Its label map is predicted again."""
    predictions = given.predictions
    assert isinstance(predictions, SegmentationPredictions)
    drawn, iou = LabelMapImages(given), image_iou(predictions)
    return lambda index: drawn.show(index, float(iou[index]))
