"""Metrics of images with several labels: mAP and F1. N images, K classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from stvit_cli.data.classification import EvalSet
from stvit_cli.tasks.base import in_float64
from stvit_cli.tasks.classification.evaluator import logits_of
from stvit_cli.tasks.classification.predictions import MultiLabelPredictions
from stvit_cli.tasks.classification.statistics import THRESHOLD, Ranking
from stvit_cli.tasks.finite import require_finite
from stvit_cli.utils.views import NO_VIEWS, Views

State = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint8], NDArray[np.float64]]
"""Of the images that one process saw: their indices (N,), logits (N, K), labels (N, K) and losses (N,)."""


class MultiLabelEvaluator:
    """Accumulates ``map``, ``f1_micro``, ``f1_macro`` and the loss.

    map: the mean over the classes of the average precision. F1 is of the classes with a probability above 0.5. As in scikit-learn
    and torchmetrics, both are 0 for a class that no image has.
    The metrics are computed from all images in the order of their indices, so they do not depend on processes.

    Args:
        val_set: the images that the indices of batches refer to; None where no predictions are needed.
        views: of each image, over which the logits are averaged.
    """

    def __init__(self, val_set: EvalSet | None = None, views: Views = NO_VIEWS) -> None:
        self.val_set, self.views = val_set, views
        self.parts: list[State] = []

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """See `tasks.base.Evaluator`."""
        logits, target = logits_of(model, batch["image"], self.views), batch["target"]  # both (B, K)
        require_finite(logits)
        losses = in_float64(F.binary_cross_entropy_with_logits(logits, target, reduction="none")).mean(1)
        self.parts.append(
            (batch["index"].cpu().numpy(), logits.cpu().numpy(), target.to(torch.uint8).cpu().numpy(), losses.cpu().numpy())
        )

    def state(self) -> State | None:
        """Return what this process saw; None for no image."""
        return _joined(self.parts) if self.parts else None

    def compute(self, states: list[State | None]) -> Iterable[tuple[str, float]]:
        """Yield the metrics; see `tasks.base.Evaluator`."""
        index, logits, target, losses = _in_order(states)
        scores = torch.from_numpy(logits).sigmoid().numpy()  # those that are kept: metrics of the kept predictions are these
        precisions = [average_precision(scores[:, label], target[:, label]) for label in range(target.shape[1])]
        micro, macro = f1_scores(scores > THRESHOLD, target.astype(np.bool_))
        yield "num_images", len(index)
        yield "map", 100 * float(np.mean(precisions))
        yield "f1_micro", 100 * micro
        yield "f1_macro", 100 * macro
        yield "loss", float(losses.mean())

    def predictions(self, states: list[State | None]) -> MultiLabelPredictions | None:
        """Return what was said of each image; see `tasks.base.KeepsPredictions`."""
        if self.val_set is None:
            return None
        (index, logits, target, losses), images = _in_order(states), self.val_set.images
        return MultiLabelPredictions(
            images=[images.relative_path(number) for number in index.tolist()],
            class_names=tuple(images.class_names),
            target=target.astype(np.bool_),
            scores=torch.from_numpy(logits).sigmoid().numpy(),
            loss=losses,
        )


def _in_order(states: list[State | None]) -> State:
    """Return what all processes saw, in the order of the images."""
    index, logits, target, losses = _joined([state for state in states if state is not None])
    order = np.argsort(index, kind="stable")
    return index[order], logits[order], target[order], losses[order]


def _joined(parts: list[State]) -> State:
    index, logits, target, losses = (np.concatenate(column) for column in zip(*parts, strict=True))
    return index, logits, target, losses


def average_precision(scores: NDArray[np.float32], target: NDArray[np.uint8]) -> float:
    """Return the area under precision and recall: sum of (R_n - R_(n-1)) P_n over the scores, as in scikit-learn.

    Args:
        scores: of one class, (N,); equal scores are one threshold.
        target: 0 or 1, (N,).

    >>> average_precision(np.array([0.9, 0.8, 0.1], np.float32), np.array([1, 0, 1], np.uint8))
    0.8333333333333333
    """
    return Ranking(scores, target.astype(np.bool_)).average_precision(np.ones(len(scores), dtype=np.int64))


def f1_scores(predicted: NDArray[np.bool_], target: NDArray[np.bool_]) -> tuple[float, float]:
    """Return F1 over all decisions (micro) and its mean over the classes (macro), of arrays (N, K).

    >>> f1_scores(np.array([[True, False]]), np.array([[True, True]]))
    (0.6666666666666666, 0.5)
    """
    right = (predicted & target).sum(0)
    all_of_them = predicted.sum(0) + target.sum(0)
    return float(2 * right.sum() / max(all_of_them.sum(), 1)), float(np.mean(2 * right / np.maximum(all_of_them, 1)))
