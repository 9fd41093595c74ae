"""Label maps from a segmenter: on complete images or by a sliding window, at one scale or several, with or without flip.

K classes; h w rows and columns of what the model sees, H W of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvit_cli.tasks.finite import require_finite


@dataclass(frozen=True)
class Inferer:
    """Computes the label map of an image.

    Attributes:
        window: side of a square sliding window, in pixels; None: the model sees the complete image.
        window_stride: pixels from one window to the next; None: two thirds of the window.
        size_divisor: images are padded to sides of a multiple of this, in pixels.
        flip: average the probabilities with those of the mirrored image.

    Example:
        >>> segmenter = nn.Conv2d(3, 5, 1)
        >>> Inferer(window=32, flip=True)(segmenter, [torch.rand(1, 3, 40, 60)], size=(80, 120)).shape
        torch.Size([80, 120])
    """

    window: int | None = None
    window_stride: int | None = None
    size_divisor: int = 1
    flip: bool = False

    def __call__(self, model: nn.Module, images: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return the class of every pixel, int64 (H, W). The probabilities of several scales are averaged.

        Args:
            model: gives logits (1, K, h, w).
            images: the image at each scale, (1, 3, h, w).
            size: H and W.

        Raises:
            NonFiniteOutputsError: the logits are infinite or NaN.
        """
        views = [(image, mirrored) for image in images for mirrored in ([False, True] if self.flip else [False])]
        if len(views) == 1:  # the largest logit is the largest probability
            return self.logits(model, views[0][0], size).argmax(1)[0]
        total = torch.zeros((), device=images[0].device)
        for image, mirrored in views:
            probabilities = self.logits(model, image.flip(-1) if mirrored else image, size).softmax(1)
            total = total + (probabilities.flip(-1) if mirrored else probabilities)
        return total.argmax(1)[0]

    def logits(self, model: nn.Module, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the logits of an image (1, 3, h, w) at the original size, float32 (1, K, H, W)."""
        padded = padded_to(image, self.size_divisor)
        if self.window is None:
            logits = model(padded)
        else:
            logits = sliding_logits(model, padded, self.window, self.window_stride or max(1, self.window * 2 // 3))
        require_finite(logits)
        logits = logits[..., : image.shape[2], : image.shape[3]]
        return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def padded_to(image: Tensor, divisor: int) -> Tensor:
    """Pad an image (1, 3, h, w) right and bottom to sides of a multiple of ``divisor``, its last column and row repeated."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % divisor, 0, -height % divisor), mode="replicate")


def sliding_logits(model: nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """Return the logits (1, K, h, w) of an image (1, 3, h, w): at each pixel the mean over all windows that contain it."""
    height, width = image.shape[-2:]
    total: Tensor | None = None
    count = image.new_zeros(1, 1, height, width)
    for top in _starts(height, window, stride):
        for left in _starts(width, window, stride):
            pixels = (..., slice(top, top + window), slice(left, left + window))
            logits = model(image[pixels]).float()
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], height, width)
            total[pixels] += logits
            count[pixels] += 1
    assert total is not None
    return total / count


def _starts(length: int, window: int, stride: int) -> Iterator[int]:
    """Yield the start of every window; the last window ends with the image."""
    for start in range(0, max(length - window, 0) + stride, stride):
        if start + window >= length:
            yield max(length - window, 0)
            return
        yield start
