"""How right a segmenter is about each image; see `tasks.image_scores`. N images, K classes."""

from __future__ import annotations

import numpy as np

from stvit_cli.tasks.image_scores import ImageScores, truth_hash
from stvit_cli.tasks.predictions import Predictions
from stvit_cli.tasks.segmentation.predictions import SegmentationPredictions
from stvit_cli.tasks.segmentation.statistics import image_iou


def image_scores(predictions: Predictions) -> ImageScores:
    """Return the mean IoU of each image over the classes that are in it or predicted; 1 where no pixel counts."""
    assert isinstance(predictions, SegmentationPredictions)
    found, count, size = predictions, len(predictions.images), len(predictions.class_names)
    cells = found.image.astype(np.int64) * size + found.target
    there = np.bincount(cells, weights=found.pixels, minlength=count * size).astype(np.float64).reshape(count, size)
    iou = image_iou(found)
    score = np.where(np.isnan(iou), 1.0, iou / 100)
    return ImageScores(
        score=score,
        what="mean IoU of the image",
        certainty=there.sum(1),
        truth=truth_hash(found.images, found.class_names, there),
        describe_truth=lambda index: "",
        describe=lambda index: f"mean IoU {100 * score[index]:.1f} %",
    )
