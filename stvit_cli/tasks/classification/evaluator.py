"""Metrics of images with one class each: top-1, top-5 and the loss. B batch, N images, K classes, T kept of each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stvit_cli.data.classification import EvalSet
from stvit_cli.tasks.base import in_float64
from stvit_cli.tasks.classification.predictions import KEPT, ClassificationPredictions
from stvit_cli.tasks.classification.statistics import TOP
from stvit_cli.tasks.finite import require_finite
from stvit_cli.utils.views import NO_VIEWS, Views


class ClassificationEvaluator:
    """Computes top-1 and top-5 accuracy and the loss. Classes with equal scores are ranked by their index.

    What is kept of an image takes some 80 bytes and stays on the device. ``top5`` is computed where there are more than five
    classes. Everything is computed from all images in their order, so it does not depend on processes.

    Args:
        val_set: the images that the indices of batches refer to; None where no predictions are needed.
        views: of each image, over which the logits are averaged.
        columns: rank these classes of the model alone, (S,); the targets count along them. None: all.
    """

    def __init__(self, val_set: EvalSet | None = None, views: Views = NO_VIEWS, columns: NDArray[np.int64] | None = None) -> None:
        self.val_set, self.views, self.columns = val_set, views, columns
        self.num_classes = 0
        self.parts: list[tuple[Tensor, ...]] = []

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """See `tasks.base.Evaluator`."""
        logits, target = logits_of(model, batch["image"], self.views), batch["target"]  # (B, K), (B,)
        require_finite(logits)
        if self.columns is not None:
            logits = logits[:, torch.from_numpy(self.columns).to(logits.device)]  # (B, S)
        own = logits.gather(1, target[:, None])
        earlier = torch.arange(logits.shape[1], device=logits.device) < target[:, None]
        rank = ((logits > own) | ((logits == own) & earlier)).sum(1)
        losses = in_float64(F.cross_entropy(logits, target, reduction="none"))
        # A copy: a view would keep the order of all K classes, 400 MB for 50 000 images of 1000 classes.
        scores, labels = logits.softmax(1), logits.sort(dim=1, descending=True, stable=True).indices[:, :KEPT].clone()
        self.num_classes = logits.shape[1]
        own_score = scores.gather(1, target[:, None])[:, 0]
        self.parts.append((batch["index"], target, labels, scores.gather(1, labels), own_score, rank, losses))

    def state(self) -> ClassificationState | None:
        """Return what this process saw; None for no image."""
        if not self.parts:
            return None
        columns = [torch.cat(column).cpu().numpy() for column in zip(*self.parts, strict=True)]
        index, target, labels, scores, own, rank, losses = columns
        small = [values.astype(np.int32) for values in (target, labels, rank)]
        return ClassificationState(self.num_classes, index, small[0], small[1], scores, own, small[2], losses)

    def compute(self, states: list[ClassificationState | None]) -> Iterable[tuple[str, float]]:
        """Yield the metrics; see `tasks.base.Evaluator`."""
        found = joined_states(states)
        num_images = len(found.indices)
        yield "num_images", num_images
        yield "top1", 100 * int((found.rank < 1).sum()) / num_images
        if found.num_classes > TOP:
            yield "top5", 100 * int((found.rank < TOP).sum()) / num_images
        yield "loss", float(found.losses.sum()) / num_images

    def predictions(self, states: list[ClassificationState | None]) -> ClassificationPredictions | None:
        """Return what was said of each image; see `tasks.base.KeepsPredictions`."""
        if self.val_set is None:
            return None
        found, images = joined_states(states), self.val_set.images
        return ClassificationPredictions(
            images=[images.relative_path(index) for index in found.indices.tolist()],
            class_names=tuple(images.class_names),
            target=found.target,
            labels=found.labels,
            scores=found.scores,
            target_score=found.target_score,
            target_rank=found.rank,
            loss=found.losses,
        )


def logits_of(model: nn.Module, images: Tensor, views: Views = NO_VIEWS) -> Tensor:
    """Return the logits of images (B, C, H, W) in float32, (B, K): their mean over the views.

    Args:
        model: a classifier.
        images: the batch.
        views: of each image. Where it is moved, its outermost pixels are repeated.

    >>> logits_of(nn.Flatten(), torch.arange(3.0).view(1, 1, 1, 3), Views(hflip=True))
    tensor([[1., 1., 1.]])
    """
    if views == NO_VIEWS:
        return model(images).float()
    height, width = images.shape[-2:]
    padding = views.translate
    padded = F.pad(images, [padding] * 4, mode="replicate")
    total = torch.zeros((), device=images.device)
    for down, right in views.offsets:
        top, left = padding - down, padding - right
        view = padded[..., top : top + height, left : left + width]
        total = total + model(view).float()
        if views.hflip:
            total = total + model(view.flip(-1)).float()
    return total / views.num_views


class ClassificationState(NamedTuple):
    """What one process saw of N images; see `ClassificationPredictions`."""

    num_classes: int
    indices: NDArray[np.int64]
    target: NDArray[np.int32]
    labels: NDArray[np.int32]
    scores: NDArray[np.float32]
    target_score: NDArray[np.float32]
    rank: NDArray[np.int32]
    losses: NDArray[np.float64]


def joined_states(states: Sequence[ClassificationState | None]) -> ClassificationState:
    """Return what all processes saw, in the order of the images."""
    seen = [state for state in states if state is not None]
    columns = [np.concatenate(column) for column in zip(*(state[1:] for state in seen), strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return ClassificationState(seen[0].num_classes, *(column[order] for column in columns))
