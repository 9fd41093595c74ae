"""The confusion matrix of a detector: what stands where which object is.

K classes and the background, M detections, G objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.detection.errors import FOREGROUND, Errors
from stvit_cli.tasks.detection.matching import Matching, Overlaps


@dataclass(frozen=True)
class Pairs:
    """Pairs of an object and the detection at its position; one of the two may be missing. P pairs.

    Attributes:
        true: class of the object; K: no object is there, (P,).
        predicted: class of the detection; K: there is none, (P,).
        image: index of the image, (P,).
        score: of the detection; 0: there is none, (P,).
    """

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    image: NDArray[np.int64]
    score: NDArray[np.float64]

    def matrix(self, num_classes: int) -> NDArray[np.int64]:
        """Return the number of pairs by true and predicted class, (K + 1, K + 1); the last row and column are the background."""
        size = num_classes + 1
        return np.bincount(self.true * size + self.predicted, minlength=size**2).reshape(size, size)


def find_pairs(overlaps: Overlaps, matching: Matching, errors: Errors, score_threshold: float) -> Pairs:
    """Pair detections with objects at an IoU of 0.5: those of the same class first, as COCO does, then what is left of any class.

    Args:
        overlaps: the IoU of detections and objects.
        matching: what they found, of objects of any size.
        errors: at the same score.
        score_threshold: detections with a lower score are left out, and so are those that a crowd makes COCO ignore.
    """
    predictions, background = overlaps.predictions, matching.num_classes
    objects, detections = predictions.objects, predictions.detections
    partner = np.full(len(overlaps.detection_area), -1, dtype=np.int64)
    kept = matching.score >= score_threshold
    right = kept & matching.is_right[0]
    partner[matching.detection[right]] = matching.match[0, right]
    is_left = np.zeros(len(partner), dtype=np.bool_)
    is_left[matching.detection[kept & ~right & ~matching.ignored[0]]] = True
    is_taken = errors.found | overlaps.is_crowd
    for image in overlaps.images:
        rows = np.flatnonzero(is_left[image.detections])
        rows = rows[np.argsort(-detections.score[image.detections[rows]], kind="stable")]
        for row in rows.tolist():
            iou = np.where(is_taken[image.objects], 0.0, image.iou[row])
            if iou.size and iou.max() >= FOREGROUND:
                chosen = image.objects[iou.argmax()]
                partner[image.detections[row]] = chosen
                is_taken[chosen] = True
    of_detections = np.flatnonzero(is_left | (partner >= 0))
    alone = np.flatnonzero(~is_taken)
    paired = partner[of_detections]
    true = np.where(paired >= 0, np.append(objects.label, background)[paired], background)
    return Pairs(
        true=np.concatenate([true, objects.label[alone]]).astype(np.int64),
        predicted=np.concatenate([detections.label[of_detections], np.full(len(alone), background)]).astype(np.int64),
        image=np.concatenate([detections.image[of_detections], objects.image[alone]]).astype(np.int64),
        score=np.concatenate([detections.score[of_detections], np.zeros(len(alone))]).astype(np.float64),
    )
