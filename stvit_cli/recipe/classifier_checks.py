"""Checks across the keys that only a classifier has: its augmentation, loss, class weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stvit_cli.recipe.tasks import TASKS

if TYPE_CHECKING:
    from stvit_cli.recipe import DataSection, Recipe

CLASSIFIER_KEYS = {
    "augment": ("vflip", "color_jitter", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob"),
    "data": ("class_weights", "balance", "multi_label"),
    "eval": ("hflip", "translate", "subset", "subset_dir"),
    "finetune": ("keep_classes",),
}
"""Keys in sections that other tasks have too."""

KINDS_OF = {
    "name": ("timm",),
    "train_split": ("idx", "timm", "shards"),
    "val_split": ("idx", "timm", "shards"),
    "test_split": ("idx", "timm", "imagefolder", "table", "shards"),
    "table": ("table",),
    "val_table": ("table",),
    "path_column": ("table", "shards"),
    "label_column": ("table", "shards"),
    "label_separator": ("table",),
    "image_dir": ("table",),
    "multi_label": ("table", "shapes"),
    "class_names": ("idx", "shards"),
    "shuffle": ("shards",),
    "shuffle_window": ("shards",),
}
"""Keys of ``data`` that only some kinds have."""

WITHOUT_NAMES_FILE = ("digits", "coco", "shapes")
"""Kinds whose classes have names already."""

_LOSS_KEYS = {"bce_sum": "bce", "bce_target_thresh": "bce", "focal_gamma": "focal", "focal_alpha": "focal"}


def keys_of_other_tasks(task: object) -> set[str]:
    """Return the keys that a task does not have, of sections that it has.

    >>> sorted(keys_of_other_tasks("classification")), "data.table" in keys_of_other_tasks("detection")
    ([], True)
    """
    found = {f"data.{key}" for key, kinds in KINDS_OF.items() if not set(kinds) & set(TASKS[str(task)].data_kinds)}
    if task == "classification":
        return found
    return found | {f"{section}.{key}" for section, keys in CLASSIFIER_KEYS.items() for key in keys}


def classifier_contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield contradictions, one line each, starting with the key to change."""
    yield from _of_another_kind(recipe.data)
    if recipe.task != "classification":
        yield from _of_another_task(recipe)
        return
    if recipe.eval.translate >= recipe.data.image_size:
        found, size = recipe.eval.translate, recipe.data.image_size
        yield f"eval.translate: found {found}, expected less than data.image_size, {size}: nothing of the image is left"
    jitter = recipe.augment.color_jitter
    if isinstance(jitter, tuple) and len(jitter) not in (3, 4):
        yield f"augment.color_jitter: found {list(jitter)}, expected a number, or 3 or 4: brightness, contrast, saturation, hue"
    if isinstance(jitter, tuple) and len(jitter) == 4 and jitter[3] > 0.5:
        yield f"augment.color_jitter: found a hue of {jitter[3]:g}, expected at most 0.5"
    if recipe.augment.color_jitter_prob is not None and not jitter:
        yield f"augment.color_jitter_prob: found {recipe.augment.color_jitter_prob:g}, but augment.color_jitter is 0"
    if recipe.data.kind == "shapes" and not recipe.data.multi_label:
        yield "data.multi_label: expected true for data.kind shapes: an image has several shapes"
    kind = recipe.loss.kind or ("bce" if recipe.data.multi_label else "cross-entropy")
    if recipe.data.multi_label and kind == "cross-entropy":
        yield "loss.kind: found cross-entropy beside data.multi_label, expected bce or focal"
    if recipe.data.multi_label and recipe.data.balance:
        yield f"data.balance: found {recipe.data.balance:g} beside data.multi_label, expected 0; use data.class_weights=balanced"
    if recipe.data.multi_label and recipe.distill.teacher is not None:
        yield f"distill.teacher: found {recipe.distill.teacher} beside data.multi_label, expected null: it gives one class"
    if recipe.data.label_separator is not None and not recipe.data.multi_label:
        yield f"data.label_separator: found {recipe.data.label_separator!r}, but data.multi_label is false"
    for key, needed in _LOSS_KEYS.items():
        value = getattr(recipe.loss, key)
        if kind != needed and value != type(recipe.loss).model_fields[key].default:
            yield f"loss.{key}: found {value}, but loss.kind is {kind}; set loss.kind={needed}"
    if kind == "focal" and recipe.data.class_weights is not None:
        yield "data.class_weights: found weights beside loss.kind focal, expected null; loss.focal_alpha weighs what is present"
    if recipe.data.multi_label and (recipe.eval.subset or recipe.eval.subset_dir):
        yield "eval.subset: found beside data.multi_label, expected null: its classes are not ranked against each other"
    if recipe.distill.teacher is None:
        for key, field in type(recipe.distill).model_fields.items():
            if getattr(recipe.distill, key) != field.default:
                yield f"distill.{key}: found {getattr(recipe.distill, key)}, but there is no teacher; set distill.teacher"


def _of_another_kind(data: DataSection) -> Iterator[str]:
    if data.kind == "auto":  # not known yet
        return
    for key, kinds in KINDS_OF.items():
        value = getattr(data, key)
        if data.kind not in kinds and value != type(data).model_fields[key].default:
            yield f"data.{key}: found {value}, but data.kind is {data.kind}; it belongs to {' and '.join(kinds)}"
    if data.kind == "timm" and data.name is None:
        yield "data.name: found null, expected the name of a data set, such as torch/cifar10, for data.kind timm"
    if data.kind == "shards" and isinstance(data.label_column, tuple):
        yield f"data.label_column: found {list(data.label_column)}, expected one field or column for data.kind shards"
    if data.shuffle == "global" and data.shuffle_window != type(data).model_fields["shuffle_window"].default:
        yield f"data.shuffle_window: found {data.shuffle_window}, but data.shuffle is global; set data.shuffle=block"
    if data.shuffle == "block" and data.balance:
        yield f"data.shuffle: found block beside data.balance {data.balance:g}, expected global: classes come from all shards"
    twice = [name for name in data.class_names if data.class_names.count(name) > 1]
    if twice:
        yield f"data.class_names: found {twice[0]!r} twice, expected a name for each class"
    if data.class_names and data.class_names_file is not None:
        yield f"data.class_names_file: found {data.class_names_file} beside data.class_names, expected one"
    if data.class_names_file is not None and data.kind in WITHOUT_NAMES_FILE:
        yield f"data.class_names_file: found {data.class_names_file}, but the classes of data.kind {data.kind} have names"


def _of_another_task(recipe: Recipe) -> Iterator[str]:
    for section, keys in CLASSIFIER_KEYS.items():
        mine = getattr(recipe, section)
        for key in keys:
            if getattr(mine, key) != type(mine).model_fields[key].default:
                yield f"{section}.{key}: belongs to task classification, but task is {recipe.task}"
