"""The datasets of a recipe for detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.coco import CocoImages, DetectionData, DetectionEvalSet, DetectionTrainSet
from stvit_cli.data.coco_folder import find_image_folder
from stvit_cli.data.coco_index import Category, CocoIndex, read_coco
from stvit_cli.data.file_listing import require_folder
from stvit_cli.data.held_out import group_images, held_out_note, hold_out_groups
from stvit_cli.errors import UserError
from stvit_cli.recipe import DataSection, DetectionSection, Recipe, ShapesSection
from stvit_cli.tasks.detection import formats
from stvit_cli.tasks.detection.detector import BOX_ONLY
from stvit_cli.tasks.shapes_folder import shapes_folder
from stvit_cli.utils.text import first_few


@dataclass(frozen=True)
class AnnotatedSets:
    """The annotation files of a run: one for each set, or one of which a part is held out.

    Attributes:
        train: the file of the training set.
        chosen: the images of ``train`` to train on, by position.
        val: the images to evaluate on.
        notes: lines for the user on what was held out.
    """

    train: CocoIndex
    chosen: NDArray[np.int64]
    val: CocoIndex
    notes: tuple[str, ...] = ()


def read_sets(data: DataSection, detection: DetectionSection, shapes: ShapesSection) -> AnnotatedSets:
    """Read the annotation files of a recipe; images without objects are left out of training unless ``keep_empty``.

    Raises:
        UserError: see `read_coco`; also where training and validation have other categories, or nothing can be trained on.
    """
    train, separate_val, notes = _read_files(data, detection, shapes)
    if not train.num_objects.any():
        found = "\n".join(train.notes(of_training=True, masks=False)) or "it has no annotations."
        raise UserError(f"{train.path}: no object in it can be trained on:\n{found}")
    is_trained_on = np.ones(len(train), dtype=np.bool_) if detection.keep_empty else train.num_objects > 0
    if separate_val is None:
        held_out, note = _hold_out(train, data)
        val = train.select(np.flatnonzero(held_out))
        return AnnotatedSets(train, np.flatnonzero(is_trained_on & ~held_out), val, (note,))
    if train.categories != separate_val.categories:
        ours, theirs = (first_few(_names(index.categories), 6) for index in (train, separate_val))
        raise UserError(f"{separate_val.path}: its categories ({theirs}) are not those of {train.path} ({ours}), ids and names.")
    return AnnotatedSets(train, np.flatnonzero(is_trained_on), separate_val, notes)


def _read_files(
    data: DataSection, detection: DetectionSection, shapes: ShapesSection
) -> tuple[CocoIndex, CocoIndex | None, tuple[str, ...]]:
    """Return what the training and the validation files say, the latter None where there is none, and lines for the user."""
    if data.kind in formats.KINDS:
        splits = formats.read_splits(data, detection)
        assert splits.train is not None, "read_splits refuses it"
        return splits.train, splits.val, splits.notes
    root = _root(data, shapes)
    train = _read_train(root, detection)
    return train, None if detection.val_json is None else _read_val(root, detection), ()


def build_detection(
    data: DataSection, detection: DetectionSection, shapes: ShapesSection, hflip: float, seed: int
) -> DetectionData:
    """Build both sets of a recipe. Raises UserError as `read_sets` does, and without an object to evaluate on."""
    sets = read_sets(data, detection, shapes)
    if not sets.val.num_objects.any():
        advice = "Annotate some of them"
        if detection.val_json is not None and data.kind not in formats.KINDS:
            advice += ", or hold out a part of the training images: detection.val_json=null"
        raise UserError(
            f"{sets.val.path}: no object in the {len(sets.val)} images to evaluate on, so the best weights could not be chosen.\n"
            f"{advice}."
        )
    _last_read.clear()
    formats.forget()
    exif, masks = detection.exif_orientation, detection.head in BOX_ONLY
    images = CocoImages(sets.train, sets.chosen, exif, masks=masks)
    return DetectionData(
        train_set=DetectionTrainSet(images, hflip, seed, data.unreadable),
        val_set=DetectionEvalSet(CocoImages(sets.val, exif_orientation=exif, masks=masks)),
        class_names=_names(sets.train.categories),
        notes=sets.notes,
    )


def build_detection_eval_set(
    data: DataSection, detection: DetectionSection, shapes: ShapesSection, class_names: Sequence[str], *, whole: bool = False
) -> DetectionEvalSet:
    """Build the set of an evaluation alone, for a model of ``class_names``.

    A file without annotations serves where the detections are written, as those of COCO's test-dev are for its server. Of a
    single file without a split the held-out images are taken, or all of them if ``whole``.

    Raises:
        UserError: as `read_sets` does.
    """
    index = _read_eval_file(data, detection, shapes, class_names, whole=whole)
    _last_read.clear()
    formats.forget()
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


def _read_eval_file(
    data: DataSection, detection: DetectionSection, shapes: ShapesSection, class_names: Sequence[str], *, whole: bool
) -> CocoIndex:
    """Return what is annotated in the images to evaluate on."""
    if data.kind in formats.KINDS:
        splits = formats.read_splits(data, detection, class_names)
        index, val = splits.train, splits.val
    else:
        root = _root(data, shapes)
        if detection.val_json is not None:
            return _read_val(root, detection, annotated=False)
        index, val = _read_train(root, detection, annotated=False), None
    if val is not None:
        return val
    assert index is not None, "a data set has images to train on or to evaluate on"
    return index if whole else index.select(np.flatnonzero(_hold_out(index, data)[0]))


def resolve_head(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Choose the head without masks where no object of the training file has one; see `tasks.resolve`."""
    section = recipe.detection
    if recipe.data.kind == "shapes" or section.head not in BOX_ONLY:
        return recipe, []
    if recipe.data.kind in formats.KINDS:
        train, _, _ = _read_files(recipe.data, section, recipe.shapes)
    else:
        train = _read_train(_root(recipe.data, recipe.shapes), section)
    if train.num_masks.any() or not train.num_objects.any():
        return recipe, []
    head = BOX_ONLY[section.head]
    detection = section.model_copy(update={"head": head})
    note = f"{train.path.name}: no object has a mask, so detection.head is {head} (boxes alone) in place of {section.head}."
    return recipe.model_copy(update={"detection": detection}), [note]


def _hold_out(index: CocoIndex, data: DataSection) -> tuple[NDArray[np.bool_], str]:
    """Return the images of a file that are held out, (N,), and a line for the user."""
    if data.val_fraction == 0:
        raise UserError(
            f"data.val_fraction is 0 and detection.val_json is null: no image of {index.path} is left for the validation."
        )
    groups = group_images(index.file_names, data.group_by)
    if len(set(groups)) < 2:
        what = "one image" if len(index) == 1 else "one group of images by data.group_by" if data.group_by else "one image file"
        raise UserError(f"{index.path} has {what}, so none can be held out to evaluate on: set detection.val_json.")
    classes = [{entry["label"] for entry in index.objects(position)} for position in range(len(index))]
    held_out = hold_out_groups(groups, classes, data.val_fraction)
    return held_out, held_out_note(index.path.name, held_out, groups, data.group_by)


_Key = tuple[object, ...]
_last_read: dict[_Key, CocoIndex] = {}
"""The files that `resolve_head` read, until `build_detection` builds the sets: COCO's takes half a minute to read."""


def _read_train(root: Path, detection: DetectionSection, *, annotated: bool = True) -> CocoIndex:
    other = None if detection.val_json is None else root / detection.val_images
    return _read(root, detection.train_json, root / detection.train_images, other, detection.invalid_annotations, annotated)


def _read_val(root: Path, detection: DetectionSection, *, annotated: bool = True) -> CocoIndex:
    assert detection.val_json is not None
    folder, other = root / detection.val_images, root / detection.train_images
    return _read(root, detection.val_json, folder, other, detection.invalid_annotations, annotated)


def _read(
    root: Path, file: str, folder: Path, other: Path | None, invalid: Literal["stop", "skip"], annotated: bool
) -> CocoIndex:
    """Read an annotation file, or return what was read of it before in this process; it must not have changed since."""
    path = root / file
    if other is not None and folder.resolve().is_relative_to(other.resolve()):
        other = None  # both sets are in one folder
    try:
        stat = path.stat()
    except OSError:
        return read_coco(path, folder, invalid=invalid, annotated=annotated, root=root, other=other)
    key = (path, folder, other, root, invalid, annotated, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    if key in _last_read:  # images may have come or gone meanwhile
        index = _last_read[key]
        return replace(index, folder=find_image_folder(path, folder, index.file_names, root, other))
    _last_read[key] = read_coco(path, folder, invalid=invalid, annotated=annotated, root=root, other=other)
    for old in list(_last_read)[:-2]:
        del _last_read[old]
    return _last_read[key]


def _root(data: DataSection, shapes: ShapesSection) -> Path:
    if data.kind == "shapes":
        return shapes_folder("coco", data, shapes)
    return require_folder(data.dir, "images and their annotations")


def _names(categories: Sequence[Category]) -> tuple[str, ...]:
    return tuple(category.name for category in categories)
