"""The transforms of `transforms` on batches of decoded images: the same values to the last bit, in a fraction of the time.

torchvision.transforms.v2 and its predecessors draw one set of random numbers for a batch. Here every image has its own, from the
generators that are seeded for it, in the order of the transform for one image; so each image is cropped, resized, flipped and
augmented by itself, by the compiled functions of `pixels` or by Pillow, into a batch of bytes; `byte_images` does the rest.

B batch, C channels of the model, D channels of the images (1: grey, 3: RGB), S side of the square input.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stvit_cli.data import pixels as compiled
from stvit_cli.data.byte_images import ByteImages, Erased, new_block
from stvit_cli.data.in_memory import without_colour
from stvit_cli.data.pixels import MappedImage, Pixels, mapped, pixels_of
from stvit_cli.data.transforms import RESAMPLING, operations

_FLIPS = {
    "RandomHorizontalFlip": Image.Transpose.FLIP_LEFT_RIGHT,
    "RandomVerticalFlip": Image.Transpose.FLIP_TOP_BOTTOM,
}


_AFFINE = ("Rotate", "Shear", "Translate")
"""How the names of timm's affine operations begin."""


@runtime_checkable
class Composed(Protocol):
    """A transform made of steps: torchvision's Compose."""

    transforms: list[Any]


class TrainBatchTransform:
    """`transforms.train_transform` for batches.

    Args:
        transform: what it returned.

    Attributes:
        is_light: an image is cropped, resized and flipped, no more: some tens of microseconds for small ones.
        is_grey: the model takes grey images, so that no others need be kept.
    """

    def __init__(self, transform: Composed) -> None:
        steps = list(transform.transforms)
        kinds = [type(step).__name__ for step in steps]
        split = kinds.index("MaybeToTensor")
        self.is_grey = kinds[0] == "Grayscale"
        self.crop, *rest = steps[int(self.is_grey) : split]
        self.size: int = self.crop.size[0]
        self.resampling = RESAMPLING[self.crop.interpolation.value]
        self.flips = []
        while rest and type(rest[0]).__name__ in _FLIPS:
            flip = rest.pop(0)
            self.flips.append((flip.p, _FLIPS[type(flip).__name__]))
        self.augment = copy.deepcopy(rest)  # those of single images stay Pillow's
        for operation in operations(self.augment):
            if operation.name.startswith(_AFFINE):
                operation.aug_fn = partial(_on_mapped, operation.aug_fn)
        self.is_light = not rest
        normalize, *erasing = steps[split + 1 :]
        self._normalize = normalize
        self.erasing = erasing[0] if erasing else None
        self.needs_torch = bool(self.flips or erasing) or not self.is_light
        self.compiled = compiled.library()

    @cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the channels."""
        mean, std = (tuple(values.float().flatten().tolist()) for values in (self._normalize.mean, self._normalize.std))
        return mean, std

    def prepared(self, image: Image.Image) -> Image.Image:
        """Return what is kept of an image: in mode L where that is enough."""
        return image.convert("L") if self.is_grey else without_colour(image)

    def __call__(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> ByteImages:
        """Return B images, each transformed with its seed. Seeds the global generators: see `loader.seeded`.

        Args:
            images: of mode RGB, or L where all channels are equal or the model takes grey ones.
            seeds: (B,).
        """
        size, channels = self.size, self._normalize.mean.numel()
        is_grey = all(image.mode == "L" for image in images) and (self.is_light or self.is_grey)
        batch = new_block((len(images), size, size, 1 if is_grey else 3))
        erased: list[_Erased] = []
        for row, image, seed in zip(batch.numpy(), images, seeds, strict=True):
            random.seed(seed)
            if self.needs_torch:
                torch.default_generator.manual_seed(seed)
            if not self.is_light:
                np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
            self._transform(image, row)
            if self.erasing is not None:
                erased.append(_Erased((channels, size, size)))
                self.erasing(erased[-1])
        return ByteImages(batch, *self._statistics, *_rectangles(erased))

    def _transform(self, image: Image.Image, out: Pixels) -> None:
        """Write an image, transformed, to ``out`` (S, S, D). Draws in the order of the transform for one image."""
        if image.mode == "L" and out.shape[2] == 3 and not self.is_grey:
            image = image.convert("RGB")
        top, left, height, width = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        flips = [method for probability, method in self.flips if torch.rand(1) < probability]
        box = (left, top, width, height)
        if self.compiled is None or image.mode != "RGB" or not self.compiled.resizes(box, self.size, self.resampling):
            image = self._resized(image, box)
            for method in flips:
                image = image.transpose(method)
        else:
            across, down = (method in flips for method in _FLIPS.values())
            source = pixels_of(image)
            if self.is_light and not down:
                self.compiled.resize(source, box, out, self.resampling, flip=across)
                return
            resized = np.empty((self.size, self.size, 4), dtype=np.uint8)
            self.compiled.resize(source, box, resized, self.resampling, flip=across)
            image = MappedImage.of(np.ascontiguousarray(resized[::-1]) if down else resized)
        for step in self.augment:
            image = step(image)
        out[...] = np.asarray(image).reshape(out.shape)

    def _resized(self, image: Image.Image, box: compiled.Box) -> Image.Image:
        """Crop and resize by Pillow, without what torchvision does around its functions."""
        left, top, width, height = box
        if (width, height) != image.size:
            image = image.crop((left, top, left + width, top + height))
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), self.resampling)
        return image


def _on_mapped(function: Callable[..., Image.Image], image: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
    return function(mapped(image), *arguments, **options)


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


def _rectangles(erased: Sequence[_Erased]) -> tuple[tuple[Erased, ...], Tensor | None]:
    """Return the rectangles of a batch and their values, in one block."""
    found = [(image, *pair) for image, one in enumerate(erased) for pair in one.written]
    if not found:
        return (), None
    block, start = new_block((sum(values.numel() for _, _, values in found),), torch.float32), 0
    rectangles = []
    for image, (_, rows, columns), values in found:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        rectangles.append(Erased(image, rows.start, columns.start, height, width, tuple(values.shape)))
        block[start : start + values.numel()] = values.flatten()
        start += values.numel()
    return tuple(rectangles), block
