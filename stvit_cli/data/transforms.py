"""Transforms for classification: those of timm, with DeiT's values for what is not an argument here.

C channels, S side of the square input in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from stvit_cli.data import pixels as compiled
from stvit_cli.errors import UserError
from stvit_cli.utils.crop import default_crop_pct

if TYPE_CHECKING:
    from torchvision.transforms import Compose

Transform = Callable[[Image.Image], Tensor]
"""From an image in mode RGB to a normalised float tensor (C, S, S)."""

RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}

MAX_ASPECT = 16.0
"""Images of a larger aspect ratio are center-cropped to it first: resizing 1 x 20000 pixels to a short side of 256 would make
256 x 5 million."""


def eval_transform(
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop_pct: float | None = None,
    interpolation: str = "bicubic",
    in_chans: int = 3,
) -> EvalTransform:
    """Return the transform for evaluation: resize the short side, crop the center, normalize.

    Args:
        image_size: S, side of the square input, in pixels.
        mean: subtracted from the channels, which are in 0..1; one value per channel.
        std: the channels are then divided by it; one value per channel.
        crop_pct: S divided by the resized short side; None: `default_crop_pct`.
        interpolation: bicubic, bilinear or nearest.
        in_chans: 3 for RGB, 1 to convert the image to grey.

    Raises:
        UserError: ``in_chans`` is neither 1 nor 3, or ``mean`` and ``std`` do not fit it.

    >>> eval_transform(32, (0.5,) * 3, (0.5,) * 3)(Image.new("RGB", (60, 40))).shape
    torch.Size([3, 32, 32])
    """
    _check_channels(mean, std, in_chans)
    return EvalTransform(image_size, mean, std, crop_pct or default_crop_pct(image_size), RESAMPLING[interpolation])


class EvalTransform:
    """timm's evaluation transform, to the last bit, without the import of timm and torchvision, which takes seconds."""

    def __init__(
        self, size: int, mean: tuple[float, ...], std: tuple[float, ...], crop_pct: float, resampling: Image.Resampling
    ) -> None:
        self.size, self.resized, self.resampling = size, math.floor(size / crop_pct), resampling
        self.mode = "L" if len(mean) == 1 else "RGB"
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(self.pixels(self.in_mode(image))).view(self.size, self.size, -1)  # H W C, uint8
        return pixels.permute(2, 0, 1).contiguous().float().div_(255).sub_(self.mean).div_(self.std)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the channels."""
        mean, std = (tuple(values.flatten().tolist()) for values in (self.mean, self.std))
        return mean, std

    def in_mode(self, image: Image.Image) -> Image.Image:
        """Return an image in the mode that the model takes."""
        return image if image.mode == self.mode else image.convert(self.mode)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return what `cropped` does as an array, (S, S, 3) of an RGB image and (S, S) of a grey one.

        Compiled where the functions have been loaded in this process; see `pixels.library`.
        """
        functions = compiled.library(build=False)
        if functions is None or image.mode != "RGB":
            return np.array(self.cropped(image))
        image = bounded_aspect(image)
        (width, height), box = self._resized(image), (0, 0, *image.size)
        left, top = self._corner(width, height)
        if (width, height) == image.size or min(left, top) < 0 or not functions.resizes(box, height, self.resampling):
            return np.array(self.cropped(image))
        out = np.empty((height, width, 3), dtype=np.uint8)
        functions.resize(compiled.pixels_of(image), box, out, self.resampling)
        return np.ascontiguousarray(out[top : top + self.size, left : left + self.size])

    def cropped(self, image: Image.Image) -> Image.Image:
        """Return an image of any mode resized and cropped to S x S."""
        image = bounded_aspect(image)
        size = self._resized(image)
        if size != image.size:
            image = image.resize(size, self.resampling)
        left, top = self._corner(*size)
        return image.crop((left, top, left + self.size, top + self.size))

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """Return the width and height to which an image is resized."""
        short, long = sorted(image.size)
        if short == self.resized:
            return image.size
        other = int(self.resized * long / short)
        return (self.resized, other) if image.width <= image.height else (other, self.resized)

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        """Return the left and the top of the crop."""
        return round((width - self.size) / 2), round((height - self.size) / 2)


def train_transform(
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
    hflip: float = 0.5,
    vflip: float = 0.0,
    auto_augment: str | None = None,
    color_jitter: float | tuple[float, ...] = 0.0,
    color_jitter_prob: float | None = None,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    random_erasing: float = 0.0,
    random_erasing_mode: str = "pixel",
    in_chans: int = 3,
) -> Transform:
    """Return the random transform for training, in timm's order of operations.

    Random resized crop, flips, auto-augment, color jitter, grayscale, blur, normalize, random erasing. Draws from random,
    numpy.random and torch's CPU generator; see `loader.seeded`.

    Args:
        image_size: S, side of the square input, in pixels.
        mean: subtracted from the channels, which are in 0..1; one value per channel.
        std: the channels are then divided by it; one value per channel.
        crop_scale: smallest and largest area of the crop, as a fraction of the image's area.
        crop_ratio: smallest and largest aspect ratio (width / height) of the crop.
        interpolation: bicubic, bilinear or nearest.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        auto_augment: timm's policy string, such as ``rand-m9-mstd0.5-inc1``; None: off.
        color_jitter: strength of color jitter, one for brightness, contrast and saturation, or a tuple of these and
            optionally the hue; 0: off. timm leaves it out beside most policies unless it is forced, as it is here.
        color_jitter_prob: probability of color jitter; None: every image.
        grayscale_prob: probability of converting an image to grey.
        gaussian_blur_prob: probability of a Gaussian blur of 23 x 23 pixels.
        random_erasing: probability of erasing a rectangle.
        random_erasing_mode: fill of the rectangle: pixel (noise per pixel), const (zeros) or rand (one random color).
        in_chans: 3 for RGB, 1 to convert the image to grey.

    Raises:
        UserError: timm does not know the policy, ``in_chans`` is neither 1 nor 3, or ``mean`` and ``std`` do not fit it.

    >>> train_transform(32, (0.5,) * 3, (0.5,) * 3, hflip=0.0)(Image.new("RGB", (60, 40))).shape
    torch.Size([3, 32, 32])
    """
    from timm.data.transforms_factory import transforms_imagenet_train

    _check_channels(mean, std, in_chans)
    try:
        transform = transforms_imagenet_train(  # not create_transform, which cannot force color jitter
            (image_size, image_size),
            scale=crop_scale,
            ratio=crop_ratio,
            hflip=hflip,
            vflip=vflip,
            color_jitter=color_jitter or None,  # type: ignore[arg-type]  # None turns it off; timm's annotation lacks it
            color_jitter_prob=color_jitter_prob,
            force_color_jitter=True,
            grayscale_prob=grayscale_prob,
            gaussian_blur_prob=gaussian_blur_prob,
            auto_augment=auto_augment,
            interpolation=interpolation,
            mean=mean,
            std=std,
            re_prob=random_erasing,
            re_mode=random_erasing_mode,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"augment.auto_augment is '{auto_augment}', which timm does not know ({error}).\n"
            "Expected e.g. rand-m9-mstd0.5-inc1 (DeiT), rand-m7-n3, augmix-m5, original, v0 or 3a."
        ) from None
    for operation in operations(transform.transforms):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return _for_channels(transform, in_chans)


def _check_channels(mean: tuple[float, ...], std: tuple[float, ...], in_chans: int) -> None:
    if in_chans not in (1, 3):
        raise UserError(f"model.in_chans is {in_chans}; expected 1 (grey) or 3 (RGB).")
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != in_chans:
            raise UserError(f"data.{key} has {len(values)} values; expected {in_chans}, one per channel (model.in_chans).")
    if not all(value > 0 for value in std):
        raise UserError(f"data.std is {list(std)}; expected values above 0.")


def bounded_aspect(image: Image.Image) -> Image.Image:
    """Crop the center of an image to an aspect ratio of at most `MAX_ASPECT`; return other images as they are."""
    width, height = image.size
    longest = round(min(width, height) * MAX_ASPECT)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, min(width, left + longest), min(height, top + longest)))


def _for_channels(transform: Compose, in_chans: int) -> Transform:
    from torchvision.transforms import Compose, Grayscale

    adapted: Transform = transform if in_chans == 3 else Compose([Grayscale(1), *transform.transforms])
    return adapted


def operations(steps: Iterable[Any]) -> Iterator[Any]:
    """Yield the operations of timm's RandAugment, AugMix and AutoAugment in the steps of a transform."""
    for step in steps:
        yield from getattr(step, "ops", [])
        for policy in getattr(step, "policy", []):
            yield from policy


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest ``bits``. At its largest magnitude timm passes 0, a black image, which Pillow 13 refuses."""
    if bits <= 0:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits) if bits < 8 else image
