"""Data sets, transforms and loaders. What the rest of the project takes from here is listed below."""

from __future__ import annotations

from collections.abc import Sequence

from stvit_cli.data.classification import ClassificationData, EvalSet, Images, TrainSet
from stvit_cli.data.digits import DigitImages
from stvit_cli.data.imagefolder import find_eval_images, find_images
from stvit_cli.data.images import open_image
from stvit_cli.data.loader import build_eval_loader, build_train_loader
from stvit_cli.data.sampling import SampleKey, TrainBatches, derive_seed, sample_order
from stvit_cli.data.transforms import eval_transform, train_transform
from stvit_cli.recipe import AugmentSection, DataSection, EvalSection

__all__ = [
    "ClassificationData",
    "EvalSet",
    "SampleKey",
    "TrainBatches",
    "build_classification",
    "build_eval_loader",
    "build_eval_set",
    "build_train_loader",
    "derive_seed",
    "eval_transform",
    "open_image",
    "sample_order",
]


def build_classification(
    data: DataSection, augment: AugmentSection, eval: EvalSection, seed: int, in_chans: int = 3
) -> ClassificationData:
    """Build the training and the validation set of a recipe.

    Raises:
        UserError: the folder or the settings are wrong; see ``imagefolder.find_images`` and ``transforms.train_transform``.
    """
    train: Images
    val: Images
    if data.kind == "digits":
        train, val = DigitImages(held_out=False), DigitImages(held_out=True)
    else:
        train, val = find_images(data)
    transform = train_transform(augment, data.image_size, data.mean, data.std, in_chans)
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
    whole: bool = False,
    interpolation: str = "bicubic",
    in_chans: int = 3,
) -> EvalSet:
    """Build the set of an evaluation alone; see ``imagefolder.find_eval_images`` for ``class_names`` and ``whole``."""
    images: Images
    images = DigitImages(held_out=True) if data.kind == "digits" else find_eval_images(data, class_names, whole)
    return _eval_set(images, data, eval, interpolation, in_chans)


def _eval_set(images: Images, data: DataSection, eval: EvalSection, interpolation: str, in_chans: int) -> EvalSet:
    transform = eval_transform(data.image_size, data.mean, data.std, eval.crop_pct, interpolation, in_chans)
    return EvalSet(images, transform)
