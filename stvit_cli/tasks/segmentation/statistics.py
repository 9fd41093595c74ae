"""The metrics of label maps as a function of how often each image counts; see `tasks.predictions.Statistics`.

K classes, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Confusions(Protocol):
    """The confusion matrix of each image; see `tasks.segmentation.predictions.SegmentationPredictions`."""

    @property
    def images(self) -> Sequence[str]: ...
    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def image(self) -> NDArray[np.integer]: ...
    @property
    def target(self) -> NDArray[np.integer]: ...
    @property
    def predicted(self) -> NDArray[np.integer]: ...
    @property
    def pixels(self) -> NDArray[np.int64]: ...


class SegmentationStatistics:
    """``miou``, ``pixel_accuracy`` and ``class_accuracy`` in percent.

    Args:
        predictions: see `Confusions`.
    """

    names: Sequence[str] = ("miou", "pixel_accuracy", "class_accuracy")

    def __init__(self, predictions: Confusions) -> None:
        self._predictions = predictions

    def __call__(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        matrix = confusion_matrix(self._predictions, counts)
        iou, accuracy = class_iou(matrix), class_accuracy(matrix)
        total = matrix.sum()
        return np.array([mean(iou), 100 * matrix.trace() / total if total else np.nan, mean(accuracy)])


def confusion_matrix(predictions: Confusions, counts: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return pixels by true class (rows) and predicted class (columns), int64 (K, K).

    Args:
        predictions: see `Confusions`.
        counts: how often each image counts, (N,); None: once.
    """
    size = len(predictions.class_names)
    pairs = predictions.target.astype(np.int64) * size + predictions.predicted
    pixels = predictions.pixels if counts is None else predictions.pixels * counts[predictions.image]
    total = np.bincount(pairs, weights=pixels, minlength=size**2)  # float64: exact to 9e15 pixels
    return total.astype(np.int64).reshape(size, size)


def class_iou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the IoU of each class in percent, (K,); NaN for one that no pixel has and none was predicted as."""
    right = matrix.diagonal()
    return _percent(right, matrix.sum(1) + matrix.sum(0) - right)


def class_accuracy(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the part of the pixels of each class that was predicted as it (recall) in percent, (K,); NaN without pixels."""
    return _percent(matrix.diagonal(), matrix.sum(1))


def class_precision(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the part of the pixels predicted as each class that is of it in percent, (K,); NaN where there are none."""
    return _percent(matrix.diagonal(), matrix.sum(0))


def image_iou(predictions: Confusions) -> NDArray[np.float64]:
    """Return for each image the mean IoU of the classes that are in it or were predicted, in percent, (N,).

    NaN for an image whose pixels are all ignored.
    """
    num_images, size = len(predictions.images), len(predictions.class_names)
    columns = (predictions.image, predictions.target, predictions.predicted)
    image, target, predicted = (values.astype(np.int64) for values in columns)
    is_right = target == predicted

    def of_classes(labels: NDArray[np.int64], chosen: NDArray[np.bool_]) -> dict[int, int]:
        keys, inverse = np.unique(image[chosen] * size + labels[chosen], return_inverse=True)
        sums = np.bincount(inverse, weights=predictions.pixels[chosen], minlength=len(keys))
        return dict(zip(keys.tolist(), sums.astype(np.int64).tolist(), strict=True))

    everything = np.ones(len(image), dtype=np.bool_)
    right, actual, found = of_classes(target, is_right), of_classes(target, everything), of_classes(predicted, everything)
    sums, numbers = np.zeros(num_images), np.zeros(num_images)
    for key in sorted(actual.keys() | found.keys()):
        both = right.get(key, 0)
        sums[key // size] += both / (actual.get(key, 0) + found.get(key, 0) - both)
        numbers[key // size] += 1
    return _percent(sums, numbers)


def mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not NaN; NaN where there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _percent(part: NDArray[np.number], whole: NDArray[np.number]) -> NDArray[np.float64]:
    return 100 * np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
