"""Which classes are taken for which: the confusion matrix and the metrics of each class. N images, K classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.classification.predictions import ClassificationPredictions
from stvit_cli.tasks.classification.shown_images import Caption, ShownImages
from stvit_cli.tasks.classification.statistics import TOP
from stvit_cli.tasks.report_parts import Column, MatrixPart, ShownImage, TablePart

MAX_CLASSES = 2000
"""Of a matrix: one of 20 000 classes would take gigabytes."""
IMAGES_PER_CELL = 6


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of each class, as scikit-learn's, in percent; NaN where one is not defined. All (K,).

    Attributes:
        images: that have the class.
        predicted: images for which it is predicted.
        precision: of the images for which it is predicted, those that have it.
        recall: of the images that have it, those for which it is predicted.
        f1: the harmonic mean of both.
        top5: of the images that have it, those whose five likeliest classes it is among.
    """

    images: NDArray[np.int64]
    predicted: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    top5: NDArray[np.float64]


def class_metrics(predictions: ClassificationPredictions) -> ClassMetrics:
    """Return the metrics of each class."""
    num_classes, predicted_as = len(predictions.class_names), predictions.labels[:, 0]
    images, predicted, hits, top5 = (
        np.bincount(labels, minlength=num_classes)
        for labels in (
            predictions.target,
            predicted_as,
            predictions.target[predicted_as == predictions.target],
            predictions.target[predictions.target_rank < TOP],
        )
    )
    with np.errstate(invalid="ignore"):
        return ClassMetrics(
            images, predicted, 100 * hits / predicted, 100 * hits / images, 200 * hits / (images + predicted), 100 * top5 / images
        )


def confusion_counts(target: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
    """Return the number of images by true class (rows) and predicted class, (K, K).

    >>> confusion_counts(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    cells = target.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_table(predictions: ClassificationPredictions) -> TablePart:
    """Return the table of the classes, those with the lowest F1 first."""
    found, names = class_metrics(predictions), predictions.class_names
    confused = _most_confused(predictions)
    has_top5 = len(names) > TOP
    columns = [
        Column("class"),
        Column("images", "count"),
        Column("predicted", "count"),
        Column("precision", "percent"),
        Column("recall", "percent"),
        Column("F1", "percent"),
        *([Column("top-5 recall", "percent")] if has_top5 else []),
        Column("most often taken for"),
    ]
    order = np.lexsort((np.arange(len(names)), np.where(found.images > 0, np.nan_to_num(found.f1), np.inf)))
    rows: list[list[str | float | int | None]] = []
    for label in order.tolist():
        percents = [found.precision, found.recall, found.f1, *([found.top5] if has_top5 else [])]
        rows.append(
            [
                names[label],
                int(found.images[label]),
                int(found.predicted[label]),
                *(None if np.isnan(values[label]) else float(values[label]) for values in percents),
                confused.get(label),
            ]
        )
    return TablePart(columns, rows, note="Precision is empty for a class that is never predicted, recall for one without images.")


def _most_confused(predictions: ClassificationPredictions) -> dict[int, str]:
    """Return for each class the other class that its images are predicted as most often, with their number."""
    found: dict[int, str] = {}
    for row, column, count in _pairs(predictions):
        found.setdefault(row, f"{predictions.class_names[column]}: {count} image{'s' * (count != 1)}")
    return found


def _pairs(predictions: ClassificationPredictions) -> list[tuple[int, int, int]]:
    """Return the true class, the predicted class and the number of images of all confusions, the most frequent first."""
    predicted = predictions.labels[:, 0]
    wrong = predicted != predictions.target
    cells = predictions.target[wrong].astype(np.int64) * len(predictions.class_names) + predicted[wrong]
    found, counts = np.unique(cells, return_counts=True)
    order = np.lexsort((found, -counts))
    rows, columns = np.divmod(found[order], len(predictions.class_names))
    return list(zip(rows.tolist(), columns.tolist(), counts[order].tolist(), strict=True))


def matrix_part(predictions: ClassificationPredictions, shown: ShownImages, caption: Caption, max_images: int) -> MatrixPart:
    """Return the confusion matrix with images of its cells.

    Of more than `MAX_CLASSES` classes it has those that are confused most; all others are one more row and column.

    Args:
        predictions: of the evaluation.
        shown: opens the images.
        caption: of an image.
        max_images: how many images the cells have together; those that many images are in get one first.
    """
    names, predicted, kept = predictions.class_names, predictions.labels[:, 0], _kept_classes(predictions)
    position = np.full(len(names), len(kept), dtype=np.int64)
    position[kept] = np.arange(len(kept))
    num_left = len(names) - len(kept)
    shown_names = [*(names[label] for label in kept.tolist()), *([f"{num_left} other classes"] if num_left else [])]
    rows, columns = position[predictions.target], position[predicted]
    counts = confusion_counts(rows, columns, len(shown_names))
    notes = ["Rows: the true class; columns: the predicted class."]
    if num_left:
        notes.append(f"Shown are the {len(kept)} of {len(names)} classes that are confused most.")
    images = _cell_images(predictions, rows * len(shown_names) + columns, shown, caption, max_images)
    return MatrixPart(
        "Images by true and predicted class",
        shown_names,
        counts.tolist(),
        {divmod(cell, len(shown_names)): found for cell, found in images.items()},
        note=" ".join(notes),
    )


def _kept_classes(predictions: ClassificationPredictions) -> NDArray[np.int64]:
    num_classes, predicted = len(predictions.class_names), predictions.labels[:, 0]
    if num_classes <= MAX_CLASSES:
        return np.arange(num_classes)
    wrong = predicted != predictions.target
    mistakes = np.bincount(np.concatenate([predictions.target[wrong], predicted[wrong]]), minlength=num_classes)
    return np.sort(np.argsort(-mistakes, kind="stable")[: MAX_CLASSES - 1])


def _cell_images(
    predictions: ClassificationPredictions, cells: NDArray[np.int64], shown: ShownImages, caption: Caption, max_images: int
) -> dict[int, list[ShownImage]]:
    """Return images by cell: first one of each cell with mistakes, the largest cells first, then a second one, and so on.

    A quarter of the images is for those that are predicted rightly.
    """
    wrong = predictions.labels[:, 0] != predictions.target
    found: dict[int, list[ShownImage]] = {}
    num_shown = 0
    for among, limit in ((wrong, max_images - max_images // 4), (~wrong, max_images)):
        for index in _by_rounds(cells, predictions.scores[:, 0], np.flatnonzero(among)):
            if num_shown >= limit or shown.has_given_up:
                break
            image = shown.show(index, caption(index), bool(wrong[index]))
            if image is not None:
                found.setdefault(int(cells[index]), []).append(image)
                num_shown += 1
    return found


def _by_rounds(cells: NDArray[np.int64], scores: NDArray[np.float32], chosen: NDArray[np.intp]) -> Sequence[int]:
    """Return images in turns: the most confident of each cell, the largest cell first, then the second of each, ..."""
    order = chosen[np.lexsort((chosen, -scores[chosen], cells[chosen]))]  # by cell, then by score
    _, first, sizes = np.unique(cells[order], return_index=True, return_counts=True)
    turn = np.arange(len(order)) - np.repeat(first, sizes)
    size = np.repeat(sizes, sizes)
    early = np.flatnonzero(turn < IMAGES_PER_CELL)
    by_turn = early[np.lexsort((order[early], -size[early], turn[early]))]
    return list(map(int, order[by_turn]))
