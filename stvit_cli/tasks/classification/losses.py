"""The losses of a classifier. B batch, K classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from stvit_cli.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits (B, K) and targets, classes (B,) or probabilities (B, K), to a scalar."""

LossKind = Literal["cross-entropy", "bce", "focal"]


def dense_targets(target: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return targets as probabilities (B, K), with label smoothing.

    Args:
        target: classes (B,), or the presence of each class (B, K) as 0 and 1.
        num_classes: K.
        smoothing: part of the probability that is spread over all classes; of several labels each moves towards 0.5 (timm).

    >>> dense_targets(torch.tensor([1]), 4, 0.2)
    tensor([[0.0500, 0.8500, 0.0500, 0.0500]])
    """
    if target.ndim == 2:
        return target * (1 - smoothing) + 0.5 * smoothing
    off = smoothing / num_classes
    dense = torch.full((len(target), num_classes), off, device=target.device)
    return dense.scatter_(1, target[:, None], 1 - smoothing + off)


def class_weights(
    given: Literal["balanced"] | Sequence[float], counts: NDArray[np.int64], num_images: int, kind: LossKind
) -> Tensor:
    """Return the weight of each class (K,).

    Args:
        given: the weights, or ``balanced``: num_images / (K x images of the class) as in scikit-learn; for ``bce`` the images
            without the class divided by those with it.
        counts: training images of each class, (K,).
        num_images: number of training images.
        kind: of the loss.

    Raises:
        UserError: another number of weights than of classes, or a class to balance that no image has.
    """
    if given != "balanced":
        if len(given) != len(counts):
            raise UserError(f"data.class_weights has {len(given)} numbers; expected {len(counts)}, one for each class.")
        return torch.tensor(given, dtype=torch.float32)
    if not counts.all():
        raise UserError(
            f"data.class_weights is balanced, but class {int(np.argmin(counts))} has no training image. Give a list of numbers."
        )
    balanced = (num_images - counts) / counts if kind == "bce" else num_images / (len(counts) * counts)
    return torch.from_numpy(balanced).float()


def build_loss(
    kind: LossKind,
    num_classes: int,
    *,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    bce_sum: bool = False,
    bce_target_thresh: float | None = None,
    focal_gamma: float = 2.0,
    focal_alpha: float | None = 0.25,
) -> Loss:
    """Return the loss: the mean over the batch, whatever the classes in it, so that micro-batches of equal size add up.

    Args:
        kind: cross-entropy; bce: timm's BinaryCrossEntropy; focal: torchvision's sigmoid_focal_loss, summed over the classes.
        num_classes: K.
        smoothing: label smoothing of targets that are classes; probabilities are taken as they are.
        weights: (K,); of a class, or with bce of its presence (``pos_weight``).
        bce_sum: sum bce over the classes.
        bce_target_thresh: bce makes targets above it 1 and others 0.
        focal_gamma: exponent of the focal loss.
        focal_alpha: weight of a class that is present, 1 minus it of one that is absent; None: no weights.
    """
    binary = BinaryCrossEntropy(0.0, bce_target_thresh, sum_classes=bce_sum, pos_weight=weights)

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        if kind == "cross-entropy" and weights is None:
            if target.ndim == 1:
                return F.cross_entropy(logits, target, label_smoothing=smoothing)
            return SoftTargetCrossEntropy()(logits, target)
        dense = dense_targets(target, num_classes, smoothing) if target.ndim == 1 else target
        if kind == "cross-entropy":
            assert weights is not None
            return F.cross_entropy(logits.float(), dense, weight=weights.to(logits.device))
        if kind == "bce":
            return binary.to(logits.device)(logits, dense)
        alpha = -1.0 if focal_alpha is None else focal_alpha  # torchvision: below 0, no weights
        return sigmoid_focal_loss(logits.float(), dense, alpha, focal_gamma).sum(1).mean()

    return loss
