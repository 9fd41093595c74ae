"""How right a classifier is about each image; see `tasks.image_scores`. N images, K classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.classification.predictions import ClassificationPredictions, MultiLabelPredictions
from stvit_cli.tasks.classification.statistics import THRESHOLD
from stvit_cli.tasks.image_scores import ImageScores, truth_hash
from stvit_cli.tasks.predictions import Predictions


def image_scores(predictions: Predictions) -> ImageScores:
    """Return whether each image is right; with several labels the part of right ones among those there or predicted."""
    if isinstance(predictions, MultiLabelPredictions):
        return _multi_label(predictions)
    assert isinstance(predictions, ClassificationPredictions)
    found, names = predictions, predictions.class_names
    return ImageScores(
        score=(found.target_rank == 0).astype(np.float64),
        what="",
        certainty=found.scores[:, 0].astype(np.float64),
        truth=truth_hash(found.images, names, found.target),
        describe_truth=lambda index: names[found.target[index]],
        describe=lambda index: f"{names[found.labels[index, 0]]} ({100 * found.scores[index, 0]:.0f} %)",
    )


def _multi_label(found: MultiLabelPredictions) -> ImageScores:
    predicted = found.scores > THRESHOLD
    there = (predicted | found.target).sum(1)
    right = (predicted & found.target).sum(1)

    def text(row: int, which: NDArray[np.bool_]) -> str:
        return ", ".join(found.class_names[index] for index in np.flatnonzero(which[row]).tolist()) or "no label"

    return ImageScores(
        score=np.where(there > 0, right / np.maximum(there, 1), 1.0),
        what="part of the labels that are right",
        certainty=np.abs(found.scores.astype(np.float64) - 0.5).mean(1),
        truth=truth_hash(found.images, found.class_names, found.target),
        describe_truth=lambda index: text(index, found.target),
        describe=lambda index: text(index, predicted),
    )
