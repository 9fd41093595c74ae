"""Predictions of made classifiers, whose probabilities are those of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.images import UnreadableImageError
from stvit_cli.tasks.classification.predictions import ClassificationPredictions, MultiLabelPredictions

HOSTILE = "</script><img src=x onerror=alert(1)>"
"""A class name that breaks a page which does not escape it."""


class MadeImages:
    """Images of one colour, which count how often they are opened; some cannot be."""

    notes: tuple[str, ...] = ()

    def __init__(self, targets: NDArray[Any], class_names: Sequence[str], unreadable: Sequence[int] = (), first: int = 0) -> None:
        self.first = first
        self.targets, self.class_names, self.unreadable = targets, tuple(class_names), set(unreadable)
        self.opened: list[int] = []

    def __len__(self) -> int:
        return len(self.targets)

    def path(self, index: int) -> str:
        return f"/data/{index}.png"

    def relative_path(self, index: int) -> str:
        return f"{index + self.first}.png"

    def fingerprint(self) -> str:
        return ""

    def target(self, index: int) -> Any:
        return int(self.targets[index]) if self.targets.ndim == 1 else self.targets[index].astype(np.float32)

    def open(self, index: int) -> Image.Image:
        self.opened.append(index)
        if index in self.unreadable:
            raise UnreadableImageError(f"{self.path(index)}: not an image.")
        index += self.first
        return Image.new("RGB", (200, 100), (37 * index % 256, index // 256, 50))


def probabilities_of(num_images: int, num_classes: int, seed: int = 0, skill: float = 2.0) -> tuple[NDArray[np.float32], ...]:
    """Return softmax probabilities (N, K) and the true classes (N,), of which the last class has none."""
    generator = np.random.default_rng(seed)
    target = generator.integers(0, num_classes - 1, num_images)
    logits = generator.normal(size=(num_images, num_classes)) * 1.5
    logits[np.arange(num_images), target] += skill
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return (exp / exp.sum(1, keepdims=True)).astype(np.float32), target


def classification_predictions(
    probabilities: NDArray[np.float32],
    target: NDArray[np.integer],
    class_names: Sequence[str] | None = None,
    images: Sequence[str] | None = None,
) -> ClassificationPredictions:
    """Return the predictions of probabilities (N, K) for true classes (N,)."""
    num_images, num_classes = probabilities.shape
    rows = np.arange(num_images)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    labels = order[:, :5].astype(np.int32)
    own = probabilities[rows, target]
    return ClassificationPredictions(
        images=list(images or [f"{number}.png" for number in range(num_images)]),
        class_names=list(class_names or [f"class {number}" for number in range(num_classes)]),
        target=target.astype(np.int32),
        labels=labels,
        scores=np.take_along_axis(probabilities, labels.astype(np.int64), axis=1),
        target_score=own,
        target_rank=np.argmax(order == target[:, None], axis=1).astype(np.int32),
        loss=-np.log(np.maximum(own, 1e-12).astype(np.float64)),
    )


def multi_label_predictions(num_images: int, num_classes: int, seed: int = 0) -> MultiLabelPredictions:
    """Return predictions with several labels an image, of which none has the last class; some scores are equal."""
    generator = np.random.default_rng(seed)
    target = generator.random((num_images, num_classes)) < 0.3
    target[:, -1] = False
    scores = np.clip(generator.normal(0.35, 0.25, target.shape) + 0.3 * target, 0.01, 0.99).round(2).astype(np.float32)
    loss = -np.where(target, np.log(scores), np.log1p(-scores.astype(np.float64))).mean(1)
    return MultiLabelPredictions(
        [f"{number}.png" for number in range(num_images)],
        [f"class {number}" for number in range(num_classes)],
        target,
        scores,
        loss,
    )
