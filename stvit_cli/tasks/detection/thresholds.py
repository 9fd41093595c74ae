"""Precision, recall and F1 of detections by the score from which they count, at an IoU of 0.5. S scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.detection.matching import Matching

SCORES: NDArray[np.float64] = np.arange(100) / 100
"""The score thresholds that are tried: 0, 0.01, ... 0.99."""


@dataclass(frozen=True)
class ScoreCurves:
    """Precision, recall and F1 at each of `SCORES`, (S,), in 0..1.

    Attributes:
        precision: part of the detections that are right; NaN where there are none.
        recall: part of the objects that were found; NaN without objects.
        f1: their harmonic mean, 2 TP / (detections + objects); NaN without either.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]

    @property
    def best(self) -> int:
        """The position of the threshold with the largest F1: the middle of the lowest run of thresholds that have it."""
        if np.isnan(self.f1).all():
            return len(SCORES) // 2
        is_best = self.f1 >= np.nanmax(self.f1)
        first = int(np.argmax(is_best))
        after = np.flatnonzero(~is_best[first:])
        last = first + int(after[0]) - 1 if after.size else len(SCORES) - 1
        return (first + last) // 2


def score_curves(matching: Matching, label: int | None = None) -> ScoreCurves:
    """Return the curves of a class, or of the detections of all classes together.

    Args:
        matching: of objects of any size.
        label: the class; None: all.
    """
    chosen = ~matching.ignored[0]
    num_objects = int(matching.num_objects.sum())
    if label is not None:
        chosen = chosen & (matching.label == label)
        num_objects = int(matching.num_objects[label])
    scores, right = matching.score[chosen], matching.is_right[0][chosen]
    ascending = np.argsort(scores)
    scores, right = scores[ascending], right[ascending]
    first = np.searchsorted(scores, SCORES.astype(np.float32).astype(np.float64))  # scores are float32
    num_right = np.append(np.cumsum(right[::-1])[::-1], 0)[first]
    num_detections = len(scores) - first
    return ScoreCurves(
        precision=_ratio(num_right, num_detections),
        recall=_ratio(num_right, np.full(len(SCORES), num_objects)),
        f1=_ratio(2 * num_right, num_detections + num_objects),
    )


def _ratio(part: NDArray[np.integer], whole: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
