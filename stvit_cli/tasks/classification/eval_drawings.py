"""Images of a classifier's evaluation with truth and prediction below them. N images, K classes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import cast

import numpy as np
from PIL import Image

from stvit_cli.data.classification import EvalSet, Images
from stvit_cli.data.drawing import enlarged, side_by_side
from stvit_cli.tasks.classification.predictions import ClassificationPredictions, MultiLabelPredictions
from stvit_cli.tasks.spec import EvalDrawing, ReportInput
from stvit_cli.utils.text import first_few, shortened

NUM_CLASSES = 3
"""Classes that are named of a prediction."""
LONGEST_NAME = 40
THRESHOLD = 0.5
"""Probability of a label that counts as predicted."""


def draw_evaluation(given: ReportInput) -> Iterator[EvalDrawing]:
    """Yield images by descending loss; see `tasks.spec.TaskSpec`."""
    predictions = given.predictions
    assert isinstance(predictions, ClassificationPredictions | MultiLabelPredictions)
    images = cast(EvalSet, given.evaluation.val_set).images
    for index in np.argsort(-predictions.loss, kind="stable").tolist():
        yield EvalDrawing(predictions.images[index], partial(_draw, images, index, *_texts(predictions, index)))


def _texts(predictions: ClassificationPredictions | MultiLabelPredictions, index: int) -> tuple[str, str]:
    names = [shortened(name, LONGEST_NAME) for name in predictions.class_names]
    if isinstance(predictions, MultiLabelPredictions):
        scores = predictions.scores[index]
        said = [label for label in np.argsort(-scores, kind="stable").tolist() if scores[label] >= THRESHOLD]
        truth = first_few([names[label] for label in np.flatnonzero(predictions.target[index])], 8) or "no class"
        return truth, first_few([f"{names[label]} {scores[label]:.0%}" for label in said], 8) or "no class"
    target = int(predictions.target[index])
    pairs = zip(predictions.labels[index].tolist(), predictions.scores[index].tolist(), strict=True)
    said_texts = [f"{names[label]} {score:.0%}" for label, score in list(pairs)[:NUM_CLASSES]]
    right = "right" if predictions.target_rank[index] == 0 else "wrong"
    return f"{names[target]} ({predictions.target_score[index]:.0%})", f"{', '.join(said_texts)} ({right})"


def _draw(images: Images, index: int, truth: str, said: str) -> Image.Image:
    return side_by_side([("", enlarged(images.open(index)))], [f"truth: {truth}", f"prediction: {said}"])
