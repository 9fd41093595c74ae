"""The datasets of a recipe for detection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stvit_cli.data.coco import CocoImages, DetectionData, DetectionEvalSet, DetectionTrainSet
from stvit_cli.data.coco_index import Category, read_coco
from stvit_cli.data.file_listing import require_folder
from stvit_cli.data.shapes import shapes_tree
from stvit_cli.errors import UserError
from stvit_cli.recipe import DataSection, DetectionSection, ShapesSection
from stvit_cli.utils.text import first_few


def build_detection(
    data: DataSection, detection: DetectionSection, shapes: ShapesSection, hflip: float, seed: int
) -> DetectionData:
    """Build both sets of a recipe.

    Raises:
        UserError: see `read_coco`; also where training and validation have other categories, or nothing can be trained on.
    """
    root = _root(data, shapes)
    train = read_coco(root / detection.train_json, root / detection.train_images, invalid=detection.invalid_annotations)
    val = read_coco(root / detection.val_json, root / detection.val_images, invalid=detection.invalid_annotations)
    if train.categories != val.categories:
        ours, theirs = (first_few(_names(index.categories), 6) for index in (train, val))
        raise UserError(f"{val.path}: its categories ({theirs}) are not those of {train.path} ({ours}), ids and names.")
    indices = np.arange(len(train)) if detection.keep_empty else np.flatnonzero(train.num_objects)
    if not train.num_objects.any():
        found = "\n".join(train.notes(of_training=True)) or "it has no annotations."
        raise UserError(f"{train.path}: no object in it can be trained on:\n{found}")
    return DetectionData(
        train_set=DetectionTrainSet(CocoImages(train, indices, detection.exif_orientation), hflip, seed, data.unreadable),
        val_set=DetectionEvalSet(CocoImages(val, exif_orientation=detection.exif_orientation)),
        class_names=_names(train.categories),
    )


def build_detection_eval_set(
    data: DataSection, detection: DetectionSection, shapes: ShapesSection, class_names: Sequence[str]
) -> DetectionEvalSet:
    """Build the set of an evaluation alone, for a model of ``class_names``.

    A file without annotations serves where the detections are written, as those of COCO's test-dev are for its server.

    Raises:
        UserError: as `build_detection` does.
    """
    root = _root(data, shapes)
    index = read_coco(
        root / detection.val_json,
        root / detection.val_images,
        invalid=detection.invalid_annotations,
        annotated=False,
    )
    if not index.num_annotations and detection.results_json is None:
        raise UserError(
            f"{index.path}: no annotations to evaluate against.\n"
            "detection.results_json=FILE writes the detections alone, in COCO's format for an evaluation server."
        )
    names = _names(index.categories)
    if names != tuple(class_names):
        raise UserError(
            f"{index.path}: its categories are {first_few(names, 6)}, the model's {first_few(class_names, 6)} "
            f"({len(names)} and {len(class_names)})."
        )
    return DetectionEvalSet(CocoImages(index, exif_orientation=detection.exif_orientation))


def _root(data: DataSection, shapes: ShapesSection) -> Path:
    if data.kind == "shapes":
        return shapes_tree("coco", (shapes.num_train, shapes.num_val), data.image_size, shapes.seed, data.dir)
    return require_folder(data.dir, "images and their annotations")


def _names(categories: Sequence[Category]) -> tuple[str, ...]:
    return tuple(category.name for category in categories)
