"""From an image and its labels to what a segmenter learns from, and to the scales of an evaluation.

The order and the figures are those published for UperNet on ADE20K: resize by a random factor, crop, flip, distort the colours,
normalise, pad. One difference: images that shrink are filtered (Pillow), which the published runs did not do.
H W rows and columns, C channels.
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

from stvit_cli.recipe import AugmentSection, DataSection, SegmentationSection

Labels = NDArray[np.int32]
"""The class of each pixel, (H, W)."""

IGNORED = -1
"""In `Labels`: a pixel that is neither learned nor evaluated."""

CROP_TRIES = 10

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


class TrainTransform:
    """An image and its labels -> (C, S, S) and (S, S), S being data.image_size. Draws from `random`; see ``loader.seeded``."""

    def __init__(self, section: SegmentationSection, augment: AugmentSection, data: DataSection) -> None:
        self.section, self.hflip, self.interpolation = section, augment.hflip, augment.interpolation
        self.crop_size, self.mean, self.std = data.image_size, data.mean, data.std

    def __call__(self, image: Image.Image, labels: Labels) -> tuple[Tensor, Tensor]:
        size = fitted(image.size, self.section.max_size, random.uniform(*self.section.scale_range))
        image, labels = resized(image, size, self.interpolation), resized_labels(labels, size)
        top, left = random_crop(labels, self.crop_size, self.section.max_class_share)
        window = (slice(top, top + self.crop_size), slice(left, left + self.crop_size))
        pixels, labels = np.asarray(image)[window], labels[window]
        if random.random() < self.hflip:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        if self.section.photometric:
            pixels = distort_colours(pixels)
        height, width = labels.shape
        beyond = (0, self.crop_size - width, 0, self.crop_size - height)  # right and bottom; 0 is the mean colour
        target = torch.from_numpy(np.array(labels, dtype=np.int64))
        return F.pad(normalised(pixels, self.mean, self.std), beyond), F.pad(target, beyond, value=IGNORED)


def eval_transform(
    section: SegmentationSection, interpolation: str, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], list[Tensor]]:
    """Return the function from an image to the tensors (1, C, h, w) that the model sees, one for each of ``eval_scales``."""

    def transform(image: Image.Image) -> list[Tensor]:
        sizes = [fitted(image.size, section.max_size, scale) for scale in section.eval_scales]
        return [normalised(np.asarray(resized(image, size, interpolation)), mean, std)[None] for size in sizes]

    return transform


def fitted(size: tuple[int, int], max_size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return (width, height) resized, keeping its shape, to fit into the long and short side ``max_size`` times ``factor``."""
    long, short = (int(side * factor) for side in max_size)
    scale = min(long / max(size), short / min(size))
    width, height = (max(1, int(side * scale + 0.5)) for side in size)
    return width, height


def resized(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """Resize an image to (width, height)."""
    return image if image.size == size else image.resize(size, _FILTERS[interpolation])


def resized_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resize labels (H, W) to (width, height) by the nearest pixel: a mean of two classes is no class."""
    return np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def random_crop(labels: Labels, crop_size: int, max_class_share: float) -> tuple[int, int]:
    """Draw the top and left of a crop; again, up to ten times, where one class has more than its share of the labelled pixels.

    A crop without any label, or of one class alone, is drawn again too; the last one stands.
    """
    height, width = labels.shape
    for _ in range(CROP_TRIES):
        top, left = random.randint(0, max(0, height - crop_size)), random.randint(0, max(0, width - crop_size))
        window = labels[top : top + crop_size, left : left + crop_size]
        counts = np.bincount(window[window != IGNORED])
        if max_class_share == 1 or (counts.size and counts.max() < max_class_share * counts.sum()):
            break
    return top, left


def distort_colours(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Distort (H, W, 3) as SSD does, each with a chance of a half.

    Brightness by up to 32 of 255; contrast by a factor of 0.5 to 1.5, before or after what follows; saturation by such a factor;
    hue by up to 18 of 180.
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


def normalised(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn (H, W, C) in 0..255 into (C, H, W) around zero."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
    return (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
