"""Metrics of a segmentation, computed from a confusion matrix. K classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def confusion(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix, int64 (K, K): pixels by true class (rows) and predicted class (columns).

    Args:
        predicted: predicted classes 0 to K - 1, of any shape.
        target: true classes, of the same shape; pixels with -1 are ignored.
        num_classes: K.
    """
    counted = target >= 0
    pairs = target[counted] * num_classes + predicted[counted]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def nonzero_entries(matrix: Tensor) -> NDArray[np.int64]:
    """Return the entries of a confusion matrix on the CPU that are not 0: true class, predicted class and pixels, (M, 3).

    >>> nonzero_entries(torch.tensor([[5, 0], [2, 0]])).tolist()
    [[0, 0, 5], [1, 0, 2]]
    """
    positions = matrix.nonzero()
    entries: NDArray[np.int64] = torch.cat([positions, matrix[positions[:, 0], positions[:, 1]][:, None]], dim=1).numpy()
    return entries


def segmentation_metrics(matrix: Tensor, class_names: Sequence[str]) -> Iterable[tuple[str, float]]:
    """Yield ``miou``, ``pixel_accuracy``, ``class_accuracy`` and ``iou/NAME`` of every class, in percent.

    The mean IoU is over the classes that are in the images or were predicted; the others have no ``iou/NAME``.
    """
    counts = matrix.double()
    true_positives, actual, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    iou = 100 * true_positives / (actual + predicted - true_positives)  # NaN for a class without a pixel
    present = ~iou.isnan()
    yield "miou", float(iou[present].mean()) if present.any() else 0.0
    yield "pixel_accuracy", float(100 * true_positives.sum() / counts.sum().clamp(min=1))
    yield "class_accuracy", float((100 * true_positives / actual)[actual > 0].mean()) if (actual > 0).any() else 0.0
    for name, value, there in zip(class_names, iou.tolist(), present.tolist(), strict=True):
        if there:
            yield f"iou/{name}", value
