"""The figures of a segmentation, all from one matrix of counts. K classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def confusion(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count pixels by their class (rows) and by what was predicted (columns): int64 (K, K).

    Args:
        predicted: classes 0 to K - 1, of any shape.
        target: the same shape; pixels with -1 are not counted.
        num_classes: K.
    """
    counted = target >= 0
    pairs = target[counted] * num_classes + predicted[counted]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def figures(matrix: Tensor, class_names: Sequence[str]) -> Iterable[tuple[str, float]]:
    """Yield ``miou``, ``pixel_accuracy``, ``class_accuracy`` and ``iou/NAME`` of every class, in percent.

    Means are over the classes that are in the images or were predicted; the others have no figure.
    """
    counts = matrix.double()
    hits, truths, guesses = counts.diag(), counts.sum(1), counts.sum(0)
    iou = 100 * hits / (truths + guesses - hits)  # not a number for a class that is nowhere
    present = ~iou.isnan()
    yield "miou", float(iou[present].mean()) if present.any() else 0.0
    yield "pixel_accuracy", float(100 * hits.sum() / counts.sum().clamp(min=1))
    yield "class_accuracy", float((100 * hits / truths)[truths > 0].mean()) if (truths > 0).any() else 0.0
    for name, value, there in zip(class_names, iou.tolist(), present.tolist(), strict=True):
        if there:
            yield f"iou/{name}", value
