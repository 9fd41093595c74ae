"""The metrics of detections as a function of how often each image counts; see `tasks.predictions.Statistics`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.detection.average_precision import AveragePrecision, mean
from stvit_cli.tasks.detection.matching import Kind, Matching, Overlaps, Predicted, match

AT_50, AT_75 = 0, 5
"""Their positions in `matching.IOU_THRESHOLDS`."""

PREFIXES: dict[Kind, str] = {"bbox": "box", "segm": "mask"}
"""Of the names of metrics."""


class DetectionStatistics:
    """COCO's AP, AP50, AP75 and AR of boxes and, where there are any, of masks, in percent.

    A part of pycocotools' metrics that one range of areas gives. All ones give its values; a class without objects in the images
    counts in none of them.

    Args:
        predictions: with what is annotated; without any object there are no metrics.
        matchings: their matches with objects of any size, where they are known; None: they are computed.

    Attributes:
        names: ``box_ap``, ``box_ap50``, ``box_ap75``, ``box_ar_100``, and the same of ``mask``.
        elements: about how many values a call reads; see `tasks.bootstrap.HasElements`. With the density of COCO and 5000 images
            it takes 20 ms for boxes on one core of an AMD EPYC.
    """

    def __init__(self, predictions: Predicted, matchings: Mapping[Kind, Matching] | None = None) -> None:
        if matchings is None:
            matchings = {kind: match(Overlaps(predictions, kind)) for kind in kinds(predictions)}
        self._parts = [AveragePrecision(matching) for matching in matchings.values()]
        self.names: Sequence[str] = tuple(
            f"{PREFIXES[kind]}_{name}" for kind in matchings for name in ("ap", "ap50", "ap75", "ar_100")
        )
        self.elements = sum(part.elements for part in self._parts)

    def __call__(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.array([value for part in self._parts for value in _metrics(part, counts)], dtype=np.float64)


def kinds(predictions: Predicted) -> tuple[Kind, ...]:
    """Return what there are metrics of: boxes, and masks where objects have some and the detections too, or nothing is detected.

    Predictions hold the masks of objects only where the model has a head for masks.
    """
    objects, detections = predictions.objects, predictions.detections
    if not len(objects.image):
        return ()
    of_objects, of_detections = (any(mask is not None for mask in boxes.masks) for boxes in (objects, detections))
    return ("bbox", "segm") if of_objects and (of_detections or not len(detections.image)) else ("bbox",)


def _metrics(part: AveragePrecision, counts: NDArray[np.int64]) -> Iterator[float]:
    precision = part.precision(counts)
    yield mean(precision)
    yield mean(precision[AT_50])
    yield mean(precision[AT_75])
    yield mean(part.recall(counts))
