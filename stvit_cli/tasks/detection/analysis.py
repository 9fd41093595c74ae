"""What a report says of a detector's predictions, computed once. K classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.detection.average_precision import AveragePrecision, mean
from stvit_cli.tasks.detection.confusion import Pairs, find_pairs
from stvit_cli.tasks.detection.errors import NO_ERROR, Errors, ap_gains, find_errors
from stvit_cli.tasks.detection.matching import AREAS, Kind, Matching, Overlaps, match
from stvit_cli.tasks.detection.predictions import DetectionPredictions
from stvit_cli.tasks.detection.statistics import DetectionStatistics, kinds
from stvit_cli.tasks.detection.thresholds import SCORES, ScoreCurves, score_curves


@dataclass(frozen=True)
class SizeMetrics:
    """Metrics of the objects of a size, in percent; NaN without such objects."""

    num_objects: int
    ap: float
    recall: float


class DetectionAnalysis:
    """Matches, errors and thresholds of predictions.

    Args:
        predictions: with what is annotated.

    Attributes:
        kinds: bbox and, where there are masks, segm.
    """

    def __init__(self, predictions: DetectionPredictions) -> None:
        self.predictions = predictions
        self.kinds = kinds(predictions)
        self._overlaps = {kind: Overlaps(predictions, kind) for kind in self.kinds}
        self._matching = {kind: match(overlaps) for kind, overlaps in self._overlaps.items()}
        self._ones: NDArray[np.int64] = np.ones(len(predictions.images), dtype=np.int64)

    @property
    def boxes(self) -> Matching:
        """The matches of boxes with objects of any size."""
        return self._matching["bbox"]

    def statistics(self) -> DetectionStatistics:
        """Return the metrics as a function of the images, of these matches."""
        return DetectionStatistics(self.predictions, self._matching)

    def precision(self, kind: Kind) -> NDArray[np.float64]:
        """Return the precision at 10 IoU thresholds of each class at 101 recalls, (10, K, 101); see `AveragePrecision`."""
        return AveragePrecision(self._matching[kind]).precision(self._ones)

    def recall(self, kind: Kind) -> NDArray[np.float64]:
        """Return the recall at 10 IoU thresholds of each class, (10, K), in 0..1."""
        return AveragePrecision(self._matching[kind]).recall(self._ones)

    def by_size(self, kind: Kind) -> dict[str, SizeMetrics]:
        """Return the metrics of `AREAS`."""
        found = {}
        for size, area in AREAS.items():
            matching = self._matching[kind] if size == "all" else match(self._overlaps[kind], area)
            part = AveragePrecision(matching)
            ap, recall = mean(part.precision(self._ones)), mean(part.recall(self._ones))
            found[size] = SizeMetrics(int(matching.counts.sum()), ap, recall)
        return found

    @cached_property
    def curves(self) -> ScoreCurves:
        """Precision, recall and F1 of all boxes by the score from which they count."""
        return score_curves(self.boxes)

    @property
    def score_threshold(self) -> float:
        """The score with the largest F1 of all boxes."""
        return float(SCORES[self.curves.best])

    @property
    def _lowest_score(self) -> float:
        """`score_threshold` as the nearest float32, which scores are."""
        return float(np.float32(self.score_threshold))

    @cached_property
    def errors(self) -> Errors:
        """The errors of the boxes from `score_threshold` on."""
        return find_errors(self._overlaps["bbox"], self.boxes, self._lowest_score)

    @cached_property
    def pairs(self) -> Pairs:
        """Objects and boxes from `score_threshold` on, for a confusion matrix."""
        return find_pairs(self._overlaps["bbox"], self.boxes, self.errors, self._lowest_score)

    def ap_gains(self) -> list[float]:
        """Return dAP of each of `ERROR_TYPES`, of all boxes."""
        return ap_gains(self.boxes, find_errors(self._overlaps["bbox"], self.boxes))

    @cached_property
    def errors_of_images(self) -> NDArray[np.int64]:
        """The number of errors in each image, (N,)."""
        predictions, size = self.predictions, len(self.predictions.images)
        wrong = predictions.detections.image[self.errors.kind != NO_ERROR]
        missed = predictions.objects.image[self.errors.missed]
        return np.bincount(wrong, minlength=size) + np.bincount(missed, minlength=size)
