"""Transforms for semantic segmentation: of an image and its labels for training, to several scales for evaluation.

Order and values are those published for UperNet on ADE20K: resize by a random factor, crop, flip, photometric distortion,
normalize, pad. One difference: downscaling is antialiased (Pillow), which it is not in the published runs.

H W rows and columns, C channels, S side of a training crop, h w rows and columns at one scale of an evaluation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Labels = NDArray[np.int32]
"""The class of each pixel, (H, W)."""

IGNORED = -1
"""In `Labels`: a pixel that counts in neither the loss nor the metrics."""

CROP_TRIES = 10

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


class TrainTransform:
    """Map an image and its labels (H, W) to tensors (C, S, S) and (S, S). Draws from `random`; see `loader.seeded`.

    Args:
        crop_size: S, in pixels.
        mean: subtracted from the channels, which are in 0..1; one value per channel.
        std: the channels are then divided by it; one value per channel.
        max_size: long and short side that the image is resized to fit into, before scaling, in pixels.
        scale_range: smallest and largest factor on ``max_size``.
        max_class_share: largest share of one class among a crop's labelled pixels; see `random_crop`.
        photometric: distort brightness, contrast, saturation and hue.
        hflip: probability of a horizontal flip.
        interpolation: bicubic, bilinear or nearest; labels always use the nearest pixel.
    """

    def __init__(
        self,
        crop_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        max_size: tuple[int, int] = (2048, 512),
        scale_range: tuple[float, float] = (0.5, 2.0),
        max_class_share: float = 0.75,
        photometric: bool = True,
        hflip: float = 0.5,
        interpolation: str = "bilinear",
    ) -> None:
        self.crop_size, self.mean, self.std = crop_size, mean, std
        self.max_size, self.scale_range, self.max_class_share = max_size, scale_range, max_class_share
        self.photometric, self.hflip, self.interpolation = photometric, hflip, interpolation

    def __call__(self, image: Image.Image, labels: Labels) -> tuple[Tensor, Tensor]:
        size = fit_size(image.size, self.max_size, random.uniform(*self.scale_range))
        image, labels = resize(image, size, self.interpolation), resize_labels(labels, size)
        top, left = random_crop(labels, self.crop_size, self.max_class_share)
        window = (slice(top, top + self.crop_size), slice(left, left + self.crop_size))
        pixels, labels = np.asarray(image)[window], labels[window]
        if random.random() < self.hflip:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        if self.photometric:
            pixels = photometric_distortion(pixels)
        height, width = labels.shape
        beyond = (0, self.crop_size - width, 0, self.crop_size - height)  # right and bottom; 0 is the mean colour
        target = torch.from_numpy(np.array(labels, dtype=np.int64))
        return F.pad(normalize(pixels, self.mean, self.std), beyond), F.pad(target, beyond, value=IGNORED)


def eval_transform(
    mean: Sequence[float],
    std: Sequence[float],
    *,
    max_size: tuple[int, int] = (2048, 512),
    scales: Sequence[float] = (1.0,),
    interpolation: str = "bilinear",
) -> Callable[[Image.Image], list[Tensor]]:
    """Return the transform for evaluation, from an image to one tensor (1, C, h, w) per scale.

    Args:
        mean: subtracted from the channels, which are in 0..1; one value per channel.
        std: the channels are then divided by it; one value per channel.
        max_size: long and short side that the image is resized to fit into, in pixels.
        scales: factors on ``max_size``.
        interpolation: bicubic, bilinear or nearest.

    >>> transform = eval_transform((0.5,) * 3, (0.5,) * 3, max_size=(80, 40), scales=(1.0, 0.5))
    >>> [tuple(image.shape) for image in transform(Image.new("RGB", (60, 60)))]
    [(1, 3, 40, 40), (1, 3, 20, 20)]
    """

    def transform(image: Image.Image) -> list[Tensor]:
        sizes = [fit_size(image.size, max_size, scale) for scale in scales]
        return [normalize(np.asarray(resize(image, size, interpolation)), mean, std)[None] for size in sizes]

    return transform


def fit_size(size: tuple[int, int], max_size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return the size of an image resized to fit into ``max_size`` times ``factor``, keeping its aspect ratio.

    Args:
        size: width and height.
        max_size: largest long and short side.
        factor: on ``max_size``.

    Returns:
        Width and height.

    >>> fit_size((1000, 500), (2048, 512), 1.0)
    (1024, 512)
    """
    long, short = (int(side * factor) for side in max_size)
    scale = min(long / max(size), short / min(size))
    width, height = (max(1, int(side * scale + 0.5)) for side in size)
    return width, height


def resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """Resize an image to (width, height)."""
    return image if image.size == size else image.resize(size, _FILTERS[interpolation])


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resize labels (H, W) to (width, height) by the nearest pixel: classes cannot be interpolated."""
    return np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def random_crop(labels: Labels, crop_size: int, max_class_share: float) -> tuple[int, int]:
    """Draw the top-left corner of a crop, up to `CROP_TRIES` times until no class exceeds ``max_class_share``.

    The share is of the crop's labelled pixels. Crops without labels, or with one class only, are drawn again too. The last
    draw is used whatever it holds.

    Args:
        labels: (H, W).
        crop_size: side of the crop, in pixels.
        max_class_share: 1 accepts the first draw.

    Returns:
        Top row and left column.
    """
    height, width = labels.shape
    for _ in range(CROP_TRIES):
        top, left = random.randint(0, max(0, height - crop_size)), random.randint(0, max(0, width - crop_size))
        window = labels[top : top + crop_size, left : left + crop_size]
        counts = np.bincount(window[window != IGNORED])
        if max_class_share == 1 or (counts.size and counts.max() < max_class_share * counts.sum()):
            break
    return top, left


def photometric_distortion(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Apply SSD's photometric distortion to pixels (H, W, 3), each part with probability 0.5.

    Brightness by up to 32 of 255, contrast by a factor of 0.5 to 1.5 (before or after saturation and hue), saturation by a
    factor of 0.5 to 1.5, hue by up to 18 of 180.
    """
    if random.random() < 0.5:
        pixels = _clipped(pixels + random.uniform(-32, 32))
    contrast = random.uniform(0.5, 1.5) if random.random() < 0.5 else 1.0
    contrast_first = random.random() < 0.5
    if contrast_first:
        pixels = _clipped(pixels * contrast)
    saturation = random.uniform(0.5, 1.5) if random.random() < 0.5 else 1.0
    hue = random.randint(-18, 18) if random.random() < 0.5 else 0
    if hue or saturation != 1.0:
        hsv = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
        hsv[..., 0] += np.uint8(round(hue * 256 / 180) % 256)  # wraps around, as a circle of hues does
        hsv[..., 1] = _clipped(hsv[..., 1] * saturation)
        pixels = np.asarray(Image.frombytes("HSV", hsv.shape[1::-1], hsv.tobytes()).convert("RGB"))
    return pixels if contrast_first else _clipped(pixels * contrast)


def _clipped(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    clipped: NDArray[np.uint8] = np.clip(values, 0, 255).astype(np.uint8)
    return clipped


def normalize(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalize pixels (H, W, C) in 0..255 to a tensor (C, H, W)."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
    return (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
