"""COCO's average precision as a function of how often each image counts.

A resampled set of images has no new matches: a bootstrap counts the same true and false positives more or less often. The
precision is largest where a true positive has just come in, so its curve is computed at true positives alone: of COCO's 36 000
objects, not of a model's 500 000 detections. The result for all ones is pycocotools'.

M detections, P true positives at all thresholds, T IoU thresholds, K classes, N images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.detection.matching import RECALL_THRESHOLDS, Matching

Counts = NDArray[np.int64]

SEGMENT_STEP = 1 << 40
"""More than any number of objects: the true positives of a threshold and class are counted from a multiple of it."""


class AveragePrecision:
    """Average precision of matched detections; see `matching.match`.

    Args:
        matching: the detections with what they found.
        thresholds: the IoU thresholds to use, by their position in `matching.IOU_THRESHOLDS`; None: all of them.
    """

    def __init__(self, matching: Matching, thresholds: NDArray[np.int64] | None = None) -> None:
        self.matching = matching
        self.thresholds = np.arange(len(matching.match)) if thresholds is None else thresholds
        classes = np.arange(matching.num_classes)
        first = np.searchsorted(matching.label, classes)  # of each class
        right = matching.is_right[self.thresholds]
        row, self._position = np.nonzero(right)
        label = matching.label[self._position]
        self._segment = row * len(classes) + label  # ascending: thresholds, then classes
        self._image = matching.image[self._position]
        self._first = first[label]
        segments = np.arange(len(self.thresholds) * len(classes) + 1)
        self._starts = np.searchsorted(self._segment, segments)
        ignored_row, ignored_at = np.nonzero(matching.ignored[self.thresholds])
        self._ignored_image = matching.image[ignored_at]
        keys, size = ignored_row * len(matching.label) + ignored_at, len(matching.label)
        self._ignored_until = np.searchsorted(keys, row * size + self._position, side="right")
        self._ignored_before = np.searchsorted(keys, row * size + self._first)
        counted = np.flatnonzero(matching.counts)
        self._object_image, self._object_label = matching.object_image[counted], matching.object_label[counted]
        self._after = self._position + 1
        self._seen_image = matching.image[: int(self._after.max(initial=0))]
        self._segment_start = self._starts[self._segment]
        self._offset = self._segment * SEGMENT_STEP
        self._base = 2.0 * (len(segments) - self._segment)  # in reverse order each segment starts above all before it

    @property
    def elements(self) -> int:
        """About how many values `precision` reads."""
        return len(self._seen_image) + 8 * len(self._position)

    def num_objects(self, counts: Counts) -> NDArray[np.int64]:
        """Return the number of objects of each class, (K,), with each image as often as it counts, (N,)."""
        weights = counts[self._object_image]
        return np.bincount(self._object_label, weights=weights, minlength=self.matching.num_classes).astype(np.int64)

    def precision(self, counts: Counts) -> NDArray[np.float64]:
        """Return the precision at COCO's 101 recalls, (T, K, 101): the largest at that recall or a higher one; else 0.

        NaN for a class without objects.

        Args:
            counts: how often each image counts, (N,).
        """
        num_objects = self.num_objects(counts)
        num_segments, num_classes = len(self._starts) - 1, len(num_objects)
        found, precision = self._at_true_positives(counts)
        envelope = np.maximum.accumulate((precision + self._base)[::-1])[::-1] - self._base
        needed = np.tile(_needed(num_objects), (len(self.thresholds), 1))  # T K, 101
        at = np.searchsorted(found + self._offset, np.arange(num_segments)[:, None] * SEGMENT_STEP + needed)
        values = np.where(at < self._starts[1:, None], np.append(envelope, 0.0)[at], 0.0)
        values = values.reshape(len(self.thresholds), num_classes, len(RECALL_THRESHOLDS))
        values[:, num_objects == 0] = np.nan
        return values

    def _at_true_positives(self, counts: Counts) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return at each true positive the number of them so far, and the precision, both (P,)."""
        seen = _sums(counts[self._seen_image])
        num_seen = seen[self._after] - seen[self._first]
        if self._ignored_image.size:
            ignored = _sums(counts[self._ignored_image])
            num_seen = num_seen - (ignored[self._ignored_until] - ignored[self._ignored_before])
        right = _sums(counts[self._image])
        found = right[1:] - right[self._segment_start]
        return found, found / (num_seen + np.spacing(1))  # as pycocotools keeps it from dividing by 0

    def recall(self, counts: Counts) -> NDArray[np.float64]:
        """Return the part of the objects of each class that all detections together find, (T, K); NaN without objects."""
        num_objects = self.num_objects(counts)
        found = np.bincount(self._segment, weights=counts[self._image], minlength=len(self._starts) - 1)
        found = found.reshape(len(self.thresholds), len(num_objects))
        return np.divide(found, num_objects, out=np.full(found.shape, np.nan), where=num_objects > 0)


def mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not NaN, in percent; NaN where there are none."""
    defined = values[~np.isnan(values)]
    return 100 * float(defined.mean()) if defined.size else float("nan")


def _sums(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sums of the first 0, 1, 2, ... values."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def _needed(num_objects: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the least number of objects to find for each of COCO's recalls, (K, 101), with the rounding of its division."""
    total = np.maximum(num_objects, 1)[:, None]
    needed = np.maximum(np.floor(RECALL_THRESHOLDS * total).astype(np.int64) - 1, 0)
    for _ in range(2):
        needed += needed / total < RECALL_THRESHOLDS
    return needed
