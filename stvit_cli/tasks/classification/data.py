"""The datasets of a recipe for classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from stvit_cli.data.class_names import read_class_names, require_model_names
from stvit_cli.data.class_subset import ClassSubset, SubsetImages, match_classes
from stvit_cli.data.classification import ClassificationData, EvalSet, Images, TrainSet
from stvit_cli.data.digits import DigitImages
from stvit_cli.data.idx import find_idx_eval_images, find_idx_images, find_idx_test_images
from stvit_cli.data.imagefolder import find_eval_images, find_images, find_test_images
from stvit_cli.data.inputs import is_of_shards
from stvit_cli.data.shapes import TABLE
from stvit_cli.data.shards.find import ShardOptions, find_shard_eval_images, find_shard_images, find_shard_test_images
from stvit_cli.data.shards.images import ShardImages
from stvit_cli.data.shards.storage import is_pattern
from stvit_cli.data.table import TableImages, TableOptions, find_table_eval_images, find_table_images, find_table_test_images
from stvit_cli.data.timm_dataset import find_timm_images, find_timm_test_images
from stvit_cli.data.transforms import eval_transform, train_transform
from stvit_cli.errors import UserError
from stvit_cli.recipe import AugmentSection, DataSection, EvalSection, Recipe
from stvit_cli.tasks.shapes_folder import shapes_folder
from stvit_cli.utils.text import first_few


def build_classification(
    data: DataSection, augment: AugmentSection, eval: EvalSection, seed: int, in_chans: int = 3
) -> ClassificationData:
    """Build the training, the validation and, where the recipe names one, the test set.

    Raises:
        UserError: as `find_images` and `train_transform`.
    """
    train, val = _find(data)
    test = None if data.test_split is None else _find_test(data, train.class_names, [train, val])
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
        test_set=None if test is None else _eval_set(test, data, eval, augment.interpolation, in_chans),
    )


def data_section(recipe: Recipe) -> DataSection:
    """Return the recipe's section ``data``; for synthetic shapes that of their table, which is written where it is missing."""
    if recipe.data.kind != "shapes":
        return recipe.data
    table = shapes_folder("table", recipe.data, recipe.shapes) / TABLE
    return recipe.data.model_copy(update={"kind": "table", "dir": str(table)})


def training_images(data: DataSection) -> Images:
    """Return the images to train on, without transforms. Raises UserError as `find_images` does."""
    return _find(data)[0]


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
    images = _find_eval(data, class_names, all_images)
    return _eval_set(images, data, eval, interpolation, in_chans)


def build_test_set(
    data: DataSection, eval: EvalSection, class_names: Sequence[str], *, interpolation: str = "bicubic", in_chans: int = 3
) -> EvalSet:
    """Build the test set alone. Raises UserError where the recipe names none, and as the functions that find its images."""
    return _eval_set(_find_test(data, class_names), data, eval, interpolation, in_chans)


def build_subset(
    data: DataSection,
    eval: EvalSection,
    model_names: Sequence[str],
    val: Images,
    *,
    interpolation: str = "bicubic",
    in_chans: int = 3,
) -> tuple[EvalSet, ClassSubset] | None:
    """Build the images of ``eval.subset``; None where the recipe has none.

    Args:
        data: the recipe's section; the images are prepared by it.
        eval: names the classes and the folder of their images.
        model_names: the classes of the model, (K,).
        val: the validation images, which are taken where no folder is given.
        interpolation: for resizing.
        in_chans: number of channels of the model.

    Returns:
        The images, with targets along the classes of the subset, and these classes among the model's.

    Raises:
        UserError: the classes or the folder are not there, the model has none of the classes, or there is no image of them.
    """
    if eval.subset is None and eval.subset_dir is None:
        return None
    images = val if eval.subset_dir is None else _subset_images(eval.subset_dir, eval.subset, data.dir)
    named = images.class_names if eval.subset is None else read_class_names(eval.subset, data.dir, key="eval.subset")
    subset = match_classes(named, model_names, "eval.subset" if eval.subset is not None else "eval.subset_dir")
    chosen = SubsetImages(images, subset)
    if not len(chosen):
        where = "the validation images" if eval.subset_dir is None else f"eval.subset_dir {eval.subset_dir}"
        raise UserError(f"eval.subset: none of {where} is of its classes: {first_few(subset.names)}.")
    return _eval_set(chosen, data, eval, interpolation, in_chans), subset


def _subset_images(source: str, names: str | None, folder: str | None) -> Images:
    """Return the images of ``eval.subset_dir``: folders by class, or shards, whose numbers count along ``eval.subset``."""
    if not (is_pattern(source) or is_of_shards(source)):
        return find_eval_images(source, all_images=True)
    listed = () if names is None else read_class_names(names, folder, key="eval.subset")
    return find_shard_eval_images(ShardOptions(dir=source, class_names=listed), all_images=True)


def _find(data: DataSection) -> tuple[Images, Images]:
    """Return the training and the validation images."""
    if data.kind == "digits":
        return DigitImages(held_out=False), DigitImages(held_out=True)
    if data.kind == "table":
        return find_table_images(_table_options(data))
    if data.kind == "idx":
        return find_idx_images(data.dir, data.val_fraction, **_splits(data), names=data.class_names)
    if data.kind == "timm":
        return find_timm_images(data.name, data.dir, data.val_fraction, **_splits(data))
    if data.kind == "shards":
        return find_shard_images(_shard_options(data))
    train, val = find_images(data.dir, data.val_fraction, group_by=data.group_by, test_split=data.test_split)
    if data.class_names_file is None:
        return train, val
    names = read_class_names(data.class_names_file, data.dir)
    return train.with_classes(names), val.with_classes(names)


def _find_test(data: DataSection, class_names: Sequence[str], used: Sequence[Images] = ()) -> Images:
    """Return the images of the test set, with the classes of the model and beside the images that it uses."""
    split = data.test_split
    if split is None:
        raise UserError("data.test_split is null: the recipe names no test images.")
    if data.kind == "imagefolder":
        return find_test_images(data.dir, split, class_names)
    if data.kind == "table":
        tables = [images for images in used if isinstance(images, TableImages)]
        return find_table_test_images(_table_options(data), class_names, tables)
    if data.kind == "shards":
        sets = [images for images in used if isinstance(images, ShardImages)]
        return find_shard_test_images(_shard_options(data), class_names, sets)
    used_splits = [data.train_split, *([data.val_split] if data.val_split is not None else [])]
    if data.kind == "idx":
        return find_idx_test_images(data.dir, split, class_names, used_splits)
    return find_timm_test_images(data.name, data.dir, split, class_names, used_splits)


def _find_eval(data: DataSection, class_names: Sequence[str] | None, all_images: bool) -> Images:
    """Return the images to evaluate on."""
    if data.kind == "digits":
        return DigitImages(held_out=True)
    chosen: dict[str, Any] = {"class_names": class_names, "all_images": all_images}
    if data.kind == "table":
        return find_table_eval_images(_table_options(data), **chosen)
    if data.kind == "idx":
        return find_idx_eval_images(data.dir, data.val_fraction, **_splits(data), names=data.class_names, **chosen)
    if data.kind == "timm":
        images = find_timm_images(data.name, data.dir, data.val_fraction, **_splits(data))[1]
        if class_names is not None:
            images.class_names = require_model_names(images.class_names, class_names, f"data.name {data.name}")
        return images
    if data.kind == "shards":
        return find_shard_eval_images(_shard_options(data), **chosen)
    return find_eval_images(data.dir, data.val_fraction, **chosen, group_by=data.group_by, test_split=data.test_split)


def _splits(data: DataSection) -> dict[str, Any]:
    names = {"train_split": data.train_split, "val_split": data.val_split, "test_split": data.test_split}
    return names | {"class_names_file": data.class_names_file}


def _table_options(data: DataSection) -> TableOptions:
    return TableOptions(**{option.name: getattr(data, option.name) for option in fields(TableOptions)})


def _shard_options(data: DataSection) -> ShardOptions:
    return ShardOptions(**{option.name: getattr(data, option.name) for option in fields(ShardOptions)})


def _eval_set(images: Images, data: DataSection, eval: EvalSection, interpolation: str, in_chans: int) -> EvalSet:
    transform = eval_transform(data.image_size, data.mean, data.std, eval.crop_pct, interpolation, in_chans)
    return EvalSet(images, transform)
