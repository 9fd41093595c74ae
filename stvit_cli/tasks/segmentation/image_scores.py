"""How right a segmenter is about each image; see `tasks.image_scores`. N images, K classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.image_scores import ImageScores, truth_hash
from stvit_cli.tasks.predictions import Predictions
from stvit_cli.tasks.segmentation.predictions import SegmentationPredictions


def image_scores(predictions: Predictions) -> ImageScores:
    """Return the mean IoU of each image over the classes that are in it or predicted; 1 where no pixel counts."""
    assert isinstance(predictions, SegmentationPredictions)
    found, count, size = predictions, len(predictions.images), len(predictions.class_names)

    def pixels(classes: NDArray[np.int16], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        cells = found.image[chosen].astype(np.int64) * size + classes[chosen]
        sums = np.bincount(cells, weights=found.pixels[chosen], minlength=count * size)
        return sums.astype(np.float64).reshape(count, size)

    everything = np.ones(len(found.image), dtype=np.bool_)
    there, predicted = pixels(found.target, everything), pixels(found.predicted, everything)
    right = pixels(found.target, found.target == found.predicted)
    union = there + predicted - right
    iou = np.divide(right, union, out=np.zeros_like(right), where=union > 0)
    classes = (union > 0).sum(1)
    score = np.where(classes > 0, iou.sum(1) / np.maximum(classes, 1), 1.0)
    return ImageScores(
        score=score,
        what="mean IoU of the image",
        certainty=there.sum(1),
        truth=truth_hash(found.images, found.class_names, there),
        describe_truth=lambda index: "",
        describe=lambda index: f"mean IoU {100 * score[index]:.1f} %",
    )
