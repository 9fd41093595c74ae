"""From an image to its label map: whole or by a sliding window, at one scale or several, mirrored too where asked for.

K classes; h w rows and columns of what the model sees, H W of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvit_cli.recipe import SegmentationSection
from stvit_cli.tasks.finite import require_finite


def label_map(model: nn.Module, images: Sequence[Tensor], size: tuple[int, int], section: SegmentationSection) -> Tensor:
    """Return the class of every pixel, int64 (H, W).

    Args:
        model: gives logits (1, K, h, w).
        images: the image at each scale, (1, 3, h, w).
        size: H and W.
        section: how images are evaluated: window, stride, flip.

    Raises:
        NonFiniteOutputsError: the logits are infinite or not a number.
    """
    views = [(image, mirrored) for image in images for mirrored in ([False, True] if section.eval_flip else [False])]
    if len(views) == 1:  # the largest logit is the largest probability
        return _logits(model, views[0][0], size, section).argmax(1)[0]
    total = torch.zeros((), device=images[0].device)
    for image, mirrored in views:
        logits = _logits(model, image.flip(-1) if mirrored else image, size, section)
        probabilities = logits.softmax(1)
        total = total + (probabilities.flip(-1) if mirrored else probabilities)
    return total.argmax(1)[0]


def _logits(model: nn.Module, image: Tensor, size: tuple[int, int], section: SegmentationSection) -> Tensor:
    """Return the logits at the original size, float32 (1, K, H, W)."""
    padded = padded_to(image, section.size_divisor)
    if section.window is None:
        logits = model(padded)
    else:
        logits = sliding_logits(model, padded, section.window, section.window_stride or max(1, section.window * 2 // 3))
    require_finite(logits)
    logits = logits[..., : image.shape[2], : image.shape[3]]
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def padded_to(image: Tensor, divisor: int) -> Tensor:
    """Pad an image (1, 3, h, w) right and bottom to sides of a multiple of ``divisor``, its last column and row repeated."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % divisor, 0, -height % divisor), mode="replicate")


def sliding_logits(model: nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """Return the mean logits (1, K, h, w) of all windows over each place of the image (1, 3, h, w)."""
    height, width = image.shape[-2:]
    total: Tensor | None = None
    count = image.new_zeros(1, 1, height, width)
    for top in _starts(height, window, stride):
        for left in _starts(width, window, stride):
            place = (..., slice(top, top + window), slice(left, left + window))
            logits = model(image[place]).float()
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], height, width)
            total[place] += logits
            count[place] += 1
    assert total is not None
    return total / count


def _starts(length: int, window: int, stride: int) -> Iterator[int]:
    """Yield where windows begin; the last one ends with the image."""
    for start in range(0, max(length - window, 0) + stride, stride):
        if start + window >= length:
            yield max(length - window, 0)
            return
        yield start
