"""How right a detector is about each image; see `tasks.image_scores`. N images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.detection.matching import Overlaps, match
from stvit_cli.tasks.detection.predictions import DetectionPredictions
from stvit_cli.tasks.detection.thresholds import SCORES, score_curves
from stvit_cli.tasks.image_scores import ImageScores, truth_hash
from stvit_cli.tasks.predictions import Predictions


def image_scores(predictions: Predictions) -> ImageScores:
    """Return F1 of the boxes of each image at an IoU of 0.5, at the score threshold of the model's largest F1."""
    assert isinstance(predictions, DetectionPredictions)
    found, objects, count = predictions, predictions.objects, len(predictions.images)
    matching = match(Overlaps(found))
    threshold = float(SCORES[score_curves(matching).best])
    kept = (matching.score >= float(np.float32(threshold))) & ~matching.ignored[0]

    def by_image(images: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(images, minlength=count)

    right = by_image(matching.image[kept & matching.is_right[0]])
    detected, there = by_image(matching.image[kept]), by_image(matching.object_image[matching.counts])
    total = detected + there

    def describe(index: int) -> str:
        missed, wrong = there[index] - right[index], detected[index] - right[index]
        return f"{right[index]} right, {wrong} wrong, {missed} missed"

    return ImageScores(
        score=np.where(total > 0, 2 * right / np.maximum(total, 1), 1.0),
        what="F1 at IoU 0.5",
        certainty=total.astype(np.float64),
        truth=truth_hash(found.images, found.class_names, objects.image, objects.label, objects.box, objects.is_crowd),
        describe_truth=lambda index: f"{there[index]} object{'' if there[index] == 1 else 's'}",
        describe=lambda index: f"{describe(index)} (score at least {threshold:.2f})",
    )
