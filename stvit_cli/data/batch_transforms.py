"""The transforms of `transforms` on batches of decoded images: the same values to the last bit, in a fraction of the time.

torchvision.transforms.v2 and its predecessors draw one set of random numbers for a batch. Here every image has its own, from the
generators that are seeded for it, in the order of the transform for one image; so each image is cropped, resized and flipped by
itself, by Pillow. What has no random numbers or writes them alone is done for the batch: conversion, normalization, erasing.

B batch, C channels of the model, D channels of the images (1: grey, 3: RGB), S side of the square input.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stvit_cli.data.in_memory import without_colour
from stvit_cli.data.transforms import RESAMPLING, Transform

_FLIPS = {
    "RandomHorizontalFlip": Image.Transpose.FLIP_LEFT_RIGHT,
    "RandomVerticalFlip": Image.Transpose.FLIP_TOP_BOTTOM,
}


def normalized(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return images of bytes as `transforms` normalizes them.

    Args:
        pixels: (B, S, S, D), uint8.
        mean: (C,).
        std: (C,).

    Returns:
        (B, C, S, S), float32, in channels-last memory.
    """
    count, size, channels = len(pixels), pixels.shape[1], len(mean)
    values = pixels.expand(-1, -1, -1, channels).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    rows = values.view(count * size, size * channels)  # vectors of the processor's, where a row of C values is shorter than one
    rows.sub_(mean.repeat(size)).div_(std.repeat(size))
    return values.permute(0, 3, 1, 2)


class TrainBatchTransform:
    """`transforms.train_transform` for batches.

    Args:
        transform: what it returned.

    Attributes:
        is_light: an image is cropped, resized and flipped, no more: some tens of microseconds for small ones.
        is_grey: the model takes grey images, so that no others need be kept.
    """

    def __init__(self, transform: Transform) -> None:
        steps: list[Any] = list(transform.transforms)  # type: ignore[attr-defined]  # a Compose
        kinds = [type(step).__name__ for step in steps]
        split = kinds.index("MaybeToTensor")
        self.is_grey = kinds[0] == "Grayscale"
        self.before = steps[int(self.is_grey) : split]
        self.crop, *rest = self.before
        self.size: int = self.crop.size[0]
        self.resampling = RESAMPLING[self.crop.interpolation.value]
        self.is_light = all(type(step).__name__ in _FLIPS for step in rest)
        self.flips = [(step.p, _FLIPS[type(step).__name__]) for step in rest] if self.is_light else []
        normalize, *erasing = steps[split + 1 :]
        self.mean, self.std = normalize.mean.float().flatten(), normalize.std.float().flatten()
        self.erasing = erasing[0] if erasing else None
        self.needs_torch = bool(self.flips or erasing) or not self.is_light

    def prepared(self, image: Image.Image) -> Image.Image:
        """Return what is kept of an image: in mode L where that is enough."""
        return image.convert("L") if self.is_grey else without_colour(image)

    def __call__(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> Tensor:
        """Return the images (B, C, S, S), each transformed with its seed. Seeds the global generators: see `loader.seeded`."""
        size, channels = self.size, len(self.mean)
        pieces: list[Image.Image] = []
        erased: list[_Erased] = []
        for image, seed in zip(images, seeds, strict=True):
            random.seed(seed)
            if self.needs_torch:
                torch.default_generator.manual_seed(seed)
            pieces.append(self._light(image) if self.is_light else self._all(image, seed))
            if self.erasing is not None:
                erased.append(_Erased((channels, size, size)))
                self.erasing(erased[-1])
        batch = normalized(torch.from_numpy(_pixels(pieces, size)), self.mean, self.std)
        for row, found in zip(batch, erased, strict=False):
            for where, values in found.written:
                row[where] = values
        return batch

    def _light(self, image: Image.Image) -> Image.Image:
        """Crop, resize and flip, without what torchvision does around Pillow's functions."""
        top, left, height, width = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        if (width, height) != image.size:
            image = image.crop((left, top, left + width, top + height))
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), self.resampling)
        for probability, method in self.flips:
            if torch.rand(1) < probability:
                image = image.transpose(method)
        return image

    def _all(self, image: Image.Image, seed: int) -> Image.Image:
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        if image.mode == "L" and not self.is_grey:
            image = image.convert("RGB")
        for step in self.before:
            image = step(image)
        return image


def _pixels(images: Sequence[Image.Image], size: int) -> NDArray[np.uint8]:
    """Return images of mode L or RGB as an array (B, size, size, D): one sheet, as each conversion of its own would cost more."""
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    sheet = Image.new(mode, (size, size * len(images)))
    for number, image in enumerate(images):
        sheet.paste(image, (0, number * size))
    return np.array(sheet).reshape(len(images), size, size, -1)


class _Erased:
    """Stands in for an image when timm's RandomErasing draws: notes what is to be written into it."""

    dtype = torch.float32

    def __init__(self, size: tuple[int, int, int]) -> None:
        self._size = size
        self.written: list[tuple[Any, Tensor]] = []

    def size(self) -> tuple[int, int, int]:
        return self._size

    def __setitem__(self, where: Any, values: Tensor) -> None:
        self.written.append((where, values))
