"""From an image to the tensor that the model sees: timm's transforms, with DeiT's settings of what a recipe leaves open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image, ImageOps
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import Compose, Grayscale

from stvit_cli.errors import UserError
from stvit_cli.recipe import AugmentSection

Transform = Callable[[Image.Image], Tensor]
"""From an image in mode RGB to a float tensor C H W, normalised."""


MAX_ASPECT = 16.0
"""A longer image is cropped to this before its short side is resized: of 1 x 20000 pixels would become 256 x 5 million."""


def default_crop_pct(image_size: int) -> float:
    """Return the side of the centre crop by the resized side: 224/256 at 224 and below, above the whole (DeiT, STViT)."""
    return 224 / 256 if image_size <= 224 else 1.0


def eval_transform(
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop_pct: float | None = None,
    interpolation: str = "bicubic",
    in_chans: int = 3,
) -> Transform:
    """Return the transform for evaluation: the shorter side resized, then the centre cropped to image_size x image_size.

    ``crop_pct`` none is ``default_crop_pct``. ``in_chans`` 1 makes the image grey. What lies beyond `MAX_ASPECT` is cropped
    first: the centre crop would leave it out anyway.
    """
    _check_channels(mean, std, in_chans)
    transform = create_transform(
        (in_chans, image_size, image_size),
        is_training=False,
        crop_pct=crop_pct or default_crop_pct(image_size),
        interpolation=interpolation,
        mean=mean,
        std=std,
    )
    return _for_channels(Compose([bounded_aspect, *transform.transforms]), in_chans)


def train_transform(
    augment: AugmentSection, image_size: int, mean: tuple[float, ...], std: tuple[float, ...], in_chans: int = 3
) -> Transform:
    """Return the random transform of a training sample: crop, flip, ``auto_augment``, erasing. Colour jitter is never on.

    It draws from random, numpy.random and torch's CPU generator; see ``loader.seeded``.

    Raises:
        UserError: ``auto_augment`` is no policy of timm's; a number of channels that images do not have.
    """
    _check_channels(mean, std, in_chans)
    try:
        transform = create_transform(
            (in_chans, image_size, image_size),
            is_training=True,
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            hflip=augment.hflip,
            color_jitter=None,  # type: ignore[arg-type]  # timm's way to say none; its annotation forgets it
            auto_augment=augment.auto_augment,
            interpolation=augment.interpolation,
            mean=mean,
            std=std,
            re_prob=augment.random_erasing,
            re_mode=augment.random_erasing_mode,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"augment.auto_augment is '{augment.auto_augment}', which timm does not know ({error}).\n"
            "Expected e.g. rand-m9-mstd0.5-inc1 (DeiT), rand-m7-n3, augmix-m5, original, v0 or 3a."
        ) from None
    for operation in _operations(transform):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return _for_channels(transform, in_chans)


def _check_channels(mean: tuple[float, ...], std: tuple[float, ...], in_chans: int) -> None:
    if in_chans not in (1, 3):
        raise UserError(f"model.in_chans is {in_chans}; images have 1 (grey) or 3 (colour).")
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != in_chans:
            raise UserError(f"data.{key} has {len(values)} values and model.in_chans is {in_chans}; expected one a channel.")
    if not all(value > 0 for value in std):
        raise UserError(f"data.std is {list(std)}; expected values above 0.")


def bounded_aspect(image: Image.Image) -> Image.Image:
    """Return the middle of an image whose sides are as 1 to `MAX_ASPECT` at most, or the image itself where they are."""
    width, height = image.size
    longest = round(min(width, height) * MAX_ASPECT)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, min(width, left + longest), min(height, top + longest)))


def _for_channels(transform: Compose, in_chans: int) -> Transform:
    adapted: Transform = transform if in_chans == 3 else Compose([Grayscale(1), *transform.transforms])
    return adapted


def _operations(transform: Compose) -> Iterator[Any]:
    """Yield the operations of timm's RandAugment, AugMix and AutoAugment in the transform."""
    for step in transform.transforms:
        yield from getattr(step, "ops", [])
        for policy in getattr(step, "policy", []):
            yield from policy


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits. At its largest magnitudes timm asks for 0 of them: a black image, which Pillow 13 refuses."""
    if bits <= 0:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits) if bits < 8 else image
