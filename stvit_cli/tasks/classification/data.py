"""The datasets of a recipe for classification."""

from __future__ import annotations

from collections.abc import Sequence

from stvit_cli.data.classification import ClassificationData, EvalSet, Images, TrainSet
from stvit_cli.data.digits import DigitImages
from stvit_cli.data.imagefolder import find_eval_images, find_images
from stvit_cli.data.transforms import eval_transform, train_transform
from stvit_cli.recipe import AugmentSection, DataSection, EvalSection


def build_classification(
    data: DataSection, augment: AugmentSection, eval: EvalSection, seed: int, in_chans: int = 3
) -> ClassificationData:
    """Build the training and the validation set.

    Raises:
        UserError: as `find_images` and `train_transform`.
    """
    train: Images
    val: Images
    if data.kind == "digits":
        train, val = DigitImages(held_out=False), DigitImages(held_out=True)
    else:
        train, val = find_images(data.dir, data.val_fraction, group_by=data.group_by)
    transform = train_transform(
        data.image_size,
        data.mean,
        data.std,
        crop_scale=augment.crop_scale,
        crop_ratio=augment.crop_ratio,
        interpolation=augment.interpolation,
        hflip=augment.hflip,
        vflip=augment.vflip,
        color_jitter=augment.color_jitter,
        color_jitter_prob=augment.color_jitter_prob,
        grayscale_prob=augment.grayscale_prob,
        gaussian_blur_prob=augment.gaussian_blur_prob,
        auto_augment=augment.auto_augment,
        random_erasing=augment.random_erasing,
        random_erasing_mode=augment.random_erasing_mode,
        in_chans=in_chans,
    )
    return ClassificationData(
        train_set=TrainSet(train, transform, seed, data.unreadable),
        val_set=_eval_set(val, data, eval, augment.interpolation, in_chans),
        class_names=train.class_names,
    )


def build_eval_set(
    data: DataSection,
    eval: EvalSection,
    class_names: Sequence[str] | None = None,
    *,
    all_images: bool = False,
    interpolation: str = "bicubic",
    in_chans: int = 3,
) -> EvalSet:
    """Build the validation set alone; see `find_eval_images` for ``class_names`` and ``all_images``."""
    images: Images = (
        DigitImages(held_out=True)
        if data.kind == "digits"
        else find_eval_images(data.dir, data.val_fraction, class_names=class_names, all_images=all_images, group_by=data.group_by)
    )
    return _eval_set(images, data, eval, interpolation, in_chans)


def _eval_set(images: Images, data: DataSection, eval: EvalSection, interpolation: str, in_chans: int) -> EvalSet:
    transform = eval_transform(data.image_size, data.mean, data.std, eval.crop_pct, interpolation, in_chans)
    return EvalSet(images, transform)
