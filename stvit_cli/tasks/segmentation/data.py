"""The datasets of a recipe for semantic segmentation."""

from __future__ import annotations

from pathlib import Path

from stvit_cli.data.file_listing import require_folder
from stvit_cli.data.image_pairs import LabelledImages, find_pairs
from stvit_cli.data.segmentation import SegmentationData, SegmentationEvalSet, SegmentationTrainSet
from stvit_cli.data.segmentation_transforms import TrainTransform, eval_transform
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.shapes_folder import shapes_folder


def build_segmentation(recipe: Recipe) -> SegmentationData:
    """Build the training and the validation set.

    Raises:
        UserError: a folder is missing or empty, or images have no label maps.
    """
    section, augment = recipe.segmentation, recipe.augment
    images = _find_images(recipe, section.train_images, section.train_maps)
    if section.val_images is None:
        images, val_images = images.hold_out(recipe.data.val_fraction, recipe.data.group_by)
    else:
        val_images = _find_images(recipe, section.val_images, section.val_maps)
    transform = TrainTransform(
        recipe.data.image_size,
        recipe.data.mean,
        recipe.data.std,
        max_size=section.max_size,
        scale_range=section.scale_range,
        max_class_share=section.max_class_share,
        photometric=section.photometric,
        hflip=augment.hflip,
        interpolation=augment.interpolation,
    )
    train_set = SegmentationTrainSet(images, transform, recipe.train.seed, recipe.data.unreadable)
    return SegmentationData(train_set, _eval_set(recipe, val_images))


def build_segmentation_eval_set(recipe: Recipe, *, whole: bool = False) -> SegmentationEvalSet:
    """Build the validation set alone: of images without a split the held-out ones, or all of them if ``whole``.

    Raises:
        UserError: as `build_segmentation` does.
    """
    section = recipe.segmentation
    if section.val_images is not None:
        return _eval_set(recipe, _find_images(recipe, section.val_images, section.val_maps))
    images = _find_images(recipe, section.train_images, section.train_maps)
    return _eval_set(recipe, images if whole else images.hold_out(recipe.data.val_fraction, recipe.data.group_by)[1])


def _eval_set(recipe: Recipe, images: LabelledImages) -> SegmentationEvalSet:
    section = recipe.segmentation
    transform = eval_transform(
        recipe.data.mean,
        recipe.data.std,
        max_size=section.max_size,
        scales=section.eval_scales,
        interpolation=recipe.augment.interpolation,
    )
    return SegmentationEvalSet(images, transform)


def _find_images(recipe: Recipe, images: str, maps: str) -> LabelledImages:
    section = recipe.segmentation
    return find_pairs(
        _root(recipe),
        images,
        maps,
        class_names=section.class_names,
        image_suffix=section.image_suffix,
        map_suffix=section.map_suffix,
        reduce_zero_label=section.reduce_zero_label,
        label_values=section.label_values,
        ignore_index=section.ignore_index,
    )


def _root(recipe: Recipe) -> Path:
    if recipe.data.kind == "shapes":
        return shapes_folder("ade20k", recipe.data, recipe.shapes)
    return require_folder(recipe.data.dir, "images and label maps")
