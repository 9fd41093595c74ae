"""The metrics of a classifier's predictions, as functions of how often each image counts. N images, K classes.

Accuracies, F1, average precision and calibration errors are in percent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOP = 5
"""The number of classes that ``top5`` counts."""
BINS = 15
"""Bins of confidence of the calibration error (Guo et al. 2017, On Calibration of Modern Neural Networks)."""
THRESHOLD = 0.5
"""With several labels an image: the probability above which a class is predicted."""


class ClassificationStatistics:
    """``top1``, ``top5`` (of more than five classes), ``loss``, ``balanced_accuracy``, ``f1_macro`` and ``ece``.

    As in scikit-learn, balanced accuracy is the mean recall of the classes that the images have, and ``f1_macro`` the mean over
    the classes that an image has or is predicted to have. ``ece`` is torchmetrics' calibration error with the norm l1.

    Args:
        target: the true class, (N,).
        predicted: the class with the highest probability, (N,).
        confidence: its probability, (N,).
        target_rank: the rank of the true class by probability, (N,); 0: the prediction is right.
        loss: cross-entropy, (N,).
        num_classes: K.

    Example:
        >>> both = np.array([0, 1])
        >>> statistics = ClassificationStatistics(both, np.array([0, 0]), np.ones(2, np.float32), both, np.ones(2), 2)
        >>> dict(zip(statistics.names, statistics(np.array([1, 1])).round(1).tolist()))
        {'top1': 50.0, 'loss': 1.0, 'balanced_accuracy': 50.0, 'f1_macro': 33.3, 'ece': 50.0}
    """

    def __init__(
        self,
        target: NDArray[np.integer],
        predicted: NDArray[np.integer],
        confidence: NDArray[np.float32],
        target_rank: NDArray[np.integer],
        loss: NDArray[np.float64],
        num_classes: int,
    ) -> None:
        right = target_rank == 0
        means = {"top1": 100.0 * right}
        if num_classes > TOP:
            means["top5"] = 100.0 * (target_rank < TOP)
        means["loss"] = loss
        self.names: Sequence[str] = (*means, "balanced_accuracy", "f1_macro", "ece")
        self._means = np.stack(list(means.values())).astype(np.float64)  # (metrics, N)
        self._target, self._predicted, self._num_classes = target.astype(np.intp), predicted.astype(np.intp), num_classes
        self._right, self._bin = right.astype(np.float64), confidence_bins(confidence)
        self._over = confidence.astype(np.float64) - self._right
        self.elements = 8 * len(target)

    def __call__(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the metrics; see `tasks.predictions.Statistics`."""
        weights, total = counts.astype(np.float64), counts.sum()
        images, predicted = (
            np.bincount(labels, weights=weights, minlength=self._num_classes) for labels in (self._target, self._predicted)
        )
        hits = np.bincount(self._target, weights=weights * self._right, minlength=self._num_classes)
        over = np.bincount(self._bin, weights=weights * self._over)
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = 2 * hits / (images + predicted)
            return np.array(
                [
                    *((self._means * weights).sum(1) / total),
                    100 * (hits / images)[images > 0].mean(),
                    100 * f1[images + predicted > 0].mean(),
                    100 * np.abs(over).sum() / total,
                ]
            )


def confidence_bins(confidence: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the bin of each confidence, (N,): bin b holds b / 15 up to, not including, (b + 1) / 15.

    A confidence of exactly 1 is in a bin 15 of its own, as in torchmetrics.

    >>> confidence_bins(np.array([0.0, 0.5, 0.99, 1.0], np.float32)).tolist()
    [0, 7, 14, 15]
    """
    edges = np.linspace(0, 1, BINS + 1, dtype=np.float32)
    return np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1


class MultiLabelStatistics:
    """``map``, ``f1_micro``, ``f1_macro`` and ``loss``, as the evaluation computes them; see `MultiLabelEvaluator`.

    Args:
        target: whether an image has a label, (N, K).
        scores: probabilities, (N, K).
        loss: the mean binary cross-entropy, (N,).

    Example:
        >>> statistics = MultiLabelStatistics(np.array([[True], [False]]), np.array([[0.9], [0.8]], np.float32), np.zeros(2))
        >>> dict(zip(statistics.names, statistics(np.array([1, 1])).round(1).tolist()))
        {'map': 100.0, 'f1_micro': 66.7, 'f1_macro': 66.7, 'loss': 0.0}
    """

    names: Sequence[str] = ("map", "f1_micro", "f1_macro", "loss")

    def __init__(self, target: NDArray[np.bool_], scores: NDArray[np.float32], loss: NDArray[np.float64]) -> None:
        predicted = scores > THRESHOLD
        self._loss = loss
        self._hits, self._marked = (predicted & target).astype(np.float64), predicted.astype(np.float64) + target
        self._classes = [Ranking(scores[:, label], target[:, label]) for label in range(target.shape[1])]
        self.elements = 2 * target.size

    def __call__(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the metrics; see `tasks.predictions.Statistics`."""
        weights = counts.astype(np.float64)
        hits, marked = weights @ self._hits, weights @ self._marked  # (K,)
        precisions = [ranking.average_precision(counts) for ranking in self._classes]
        return np.array(
            [
                100 * float(np.mean(precisions)),
                100 * float(2 * hits.sum() / max(marked.sum(), 1)),
                100 * float(np.mean(2 * hits / np.maximum(marked, 1))),
                float((weights * self._loss).sum() / weights.sum()),
            ]
        )


class Ranking:
    """The images in the order of their scores for a class.

    Args:
        scores: of the class, (N,); equal scores are one threshold.
        target: whether an image has the class, (N,).

    Example:
        >>> Ranking(np.array([0.9, 0.8, 0.1], np.float32), np.array([True, False, True])).average_precision(np.ones(3, np.int64))
        0.8333333333333333
    """

    def __init__(self, scores: NDArray[np.float32], target: NDArray[np.bool_]) -> None:
        self.order = np.argsort(-scores, kind="stable").astype(np.int32)
        last = np.flatnonzero(np.append(np.diff(scores[self.order]) != 0, True))  # the last of equal scores
        positives = np.flatnonzero(target[self.order])
        self.positives = self.order[positives]
        groups = np.searchsorted(last, positives)  # which of the equal scores each positive is among
        ends = np.flatnonzero(np.append(np.diff(groups) != 0, True)) if len(groups) else groups
        self.ends, self.rows = ends, last[groups[ends]]  # of each group with positives: its last one, and its last image

    def average_precision(self, counts: NDArray[np.int64]) -> float:
        """Return the area under precision and recall: sum of (R_n - R_(n-1)) P_n over the scores, as in scikit-learn.

        Args:
            counts: how often each image counts, (N,). 0 where no image has the class.
        """
        hits = np.cumsum(counts[self.positives])[self.ends]
        if not len(hits) or not hits[-1]:
            return 0.0
        seen = np.cumsum(counts[self.order])[self.rows]
        return float(np.sum(np.diff(hits, prepend=0) * (hits / np.maximum(seen, 1))) / hits[-1])
