"""Checks across keys: values of a recipe that are valid alone but contradict each other. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stvit_cli.recipe.classifier_checks import classifier_contradictions
from stvit_cli.recipe.field_types import MAX_GRID_SIZE, MAX_SIDE, MIN_CROP_PCT, MIN_STD
from stvit_cli.recipe.tasks import TASKS, other_tasks_sections, tasks_with
from stvit_cli.recipe.yaml import flow
from stvit_cli.utils.text import did_you_mean

if TYPE_CHECKING:
    from stvit_cli.recipe import DataSection, Recipe

HALVED = "; decimals are written with a point (0.5)"
"""Hint for a list twice as long as expected: ``[0,5, 0,25]`` is four numbers."""


def contradictions(recipe: Recipe, *, saved: bool = False) -> Iterator[str]:
    """Yield contradictions, one line each, starting with the key to change.

    Args:
        recipe: whose values are valid alone.
        saved: the recipe was written by a run, or follows from a weights file: see `byte_scale`.
    """
    model, data, augment, schedule = recipe.model, recipe.data, recipe.augment, recipe.schedule
    yield from _channels(data, model.in_chans)
    if not saved:
        yield from byte_scale(data)
    yield from _beyond_limits(recipe)
    if data.kind == "digits" and data.dir is not None:
        yield f"data.dir: found {data.dir}, but data.kind is digits, which needs no folder; set data.kind=imagefolder"
    if data.group_by is not None:
        try:
            re.compile(data.group_by)
        except re.error as error:
            yield f"data.group_by: found {data.group_by}, expected a regular expression: {error}"
    low, high = augment.crop_scale
    if not 0 < low <= high:
        yield f"augment.crop_scale: found {[low, high]}, expected a smaller and a larger fraction, above 0"
    low, high = augment.crop_ratio
    if not 0 < low <= high:
        yield f"augment.crop_ratio: found {[low, high]}, expected a smaller and a larger ratio, above 0"
    if schedule.steps is None and schedule.warmup_epochs >= schedule.epochs:
        yield f"schedule.warmup_epochs: found {schedule.warmup_epochs}, expected fewer than schedule.epochs ({schedule.epochs})"
    if schedule.steps is not None and schedule.warmup_steps >= schedule.steps:
        yield f"schedule.warmup_steps: found {schedule.warmup_steps}, expected fewer than schedule.steps ({schedule.steps})"
    if schedule.warmup_steps and schedule.warmup_epochs:
        yield f"schedule.warmup_steps: found {schedule.warmup_steps} beside warmup_epochs {schedule.warmup_epochs}, expected one"
    if (schedule.kind == "step") != bool(schedule.milestones) or list(schedule.milestones) != sorted(set(schedule.milestones)):
        yield f"schedule.milestones: found {list(schedule.milestones)}, expected rising epochs with kind step, none with another"
    if schedule.kind in ("cosine", "poly") and schedule.min_lr > recipe.peak_lr:
        yield f"schedule.min_lr: found {schedule.min_lr:g}, expected at most the peak learning rate ({recipe.peak_lr:g})"
    if (schedule.warmup_epochs or schedule.warmup_steps) and schedule.warmup_lr > recipe.peak_lr:
        yield f"schedule.warmup_lr: found {schedule.warmup_lr:g}, expected at most the peak learning rate ({recipe.peak_lr:g})"
    yield from classifier_contradictions(recipe)
    if recipe.finetune.unfreeze_epochs is not None and recipe.finetune.freeze_backbone:
        yield "finetune.unfreeze_epochs: found a number beside freeze_backbone, which keeps the backbone frozen; expected one"
    yield from _task_contradictions(recipe)
    if model.pretrained and not model.name.startswith("timm/"):
        other = "give a file, or a name of `stvit weights list`: weights=FILE"
        yield f"model.pretrained: found true, but {model.name} has no weights to download; {other}"
    if model.kwargs and not model.name.startswith("timm/"):
        yield f"model.kwargs: found {flow(model.kwargs)}, but {model.name} is no model of timm, timm/NAME; expected {{}}"
    rates = model.drop_path_rate
    if isinstance(rates, dict) and model.name not in rates and not model.name.startswith("timm/"):
        guess = did_you_mean(model.name, rates)
        yield f"model.drop_path_rate: found rates for {', '.join(rates)}, expected one for {model.name} (model.name).{guess}"


def _channels(data: DataSection, in_chans: int) -> Iterator[str]:
    """Yield what is wrong with the number of values in data.mean and data.std."""
    for key, values in (("data.mean", data.mean), ("data.std", data.std)):
        halved = HALVED if len(values) == 2 * in_chans else ""
        if len(values) != in_chans:
            yield f"{key}: found {len(values)} values, expected {in_chans} (model.in_chans){halved}"
        elif key == "data.std" and min(values) <= 0:
            yield f"{key}: found {list(values)}, expected numbers above 0"


def byte_scale(data: DataSection) -> Iterator[str]:
    """Yield data.mean and data.std that are on the scale of 0 to 255.

    Version 0.1.0 accepted them, so its runs have to be evaluated and resumed with them.
    """
    mean_in_bytes = any(abs(value) > 1 for value in data.mean)
    for key, values in (("data.mean", data.mean), ("data.std", data.std)):
        if any(abs(value) > 1 for value in values) or (mean_in_bytes and min(values, default=0) >= 1):
            written = ", ".join(f"{value / 255:.4g}" for value in values)
            yield f"{key}: found {list(values)}, on the scale of 0 to 255; expected that of 0 to 1: write [{written}]"


def _beyond_limits(recipe: Recipe) -> Iterator[str]:
    """Yield what the metadata of a weights file refuses: the run would end with weights that cannot be read."""
    data, grid_sizes, crop_pct = recipe.data, recipe.model.grid_sizes or (), recipe.eval.crop_pct
    if data.image_size > MAX_SIDE:
        yield f"data.image_size: found {data.image_size}, expected at most {MAX_SIDE}"
    if max(grid_sizes, default=0) > MAX_GRID_SIZE:
        yield f"model.grid_sizes: found {list(grid_sizes)}, expected at most {MAX_GRID_SIZE} tokens"
    if crop_pct is not None and crop_pct < MIN_CROP_PCT:
        yield f"eval.crop_pct: found {crop_pct:g}, expected {MIN_CROP_PCT:g} or more"
    if 0 < min(data.std, default=1) < MIN_STD:
        yield f"data.std: found {list(data.std)}, expected {MIN_STD:g} or more"


def _task_contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield what contradicts the task."""
    for section in other_tasks_sections(recipe.task, recipe.data.kind):
        mine, default = getattr(recipe, section), type(recipe).model_fields[section].default
        changed = [key for key in type(mine).model_fields if getattr(mine, key) != getattr(default, key)]
        if changed:
            more = f" (and {len(changed) - 1} more of {section})" if len(changed) > 1 else ""
            yield f"{section}.{changed[0]}: belongs to task {' or '.join(tasks_with(section))}, but task is {recipe.task}{more}"
    kinds = TASKS[recipe.task].data_kinds
    if recipe.data.kind not in (*kinds, "auto"):
        yield f"data.kind: found {recipe.data.kind}, expected {', '.join(kinds[:-1])} or {kinds[-1]} for task {recipe.task}"
    if recipe.task != "classification":
        if recipe.data.in_memory is True:
            yield f"data.in_memory: found true, expected auto or false for task {recipe.task}, which reads its images each time"
        if recipe.model.in_chans != 3:
            yield f"model.in_chans: found {recipe.model.in_chans}, expected 3 for task {recipe.task}"
        if recipe.optim.layer_decay is not None:
            yield f"optim.layer_decay: found {recipe.optim.layer_decay:g}, expected null for task {recipe.task}"
    if recipe.task == "detection":
        yield from _unused_annotation_files(recipe)
        if recipe.augment.repeats != 1:
            yield f"augment.repeats: found {recipe.augment.repeats}, expected 1 for task detection"
        if max(recipe.detection.short_sides) > recipe.detection.long_side:
            yield f"detection.long_side: found {recipe.detection.long_side}, expected no less than the short sides"
    if recipe.task == "segmentation":
        low, high = recipe.segmentation.scale_range
        if low > high:
            yield f"segmentation.scale_range: found {[low, high]}, expected a smaller and a larger factor"
        named_by_file = recipe.data.class_names_file is not None
        if not recipe.segmentation.class_names and recipe.data.kind != "auto" and not named_by_file:
            yield "segmentation.class_names: found none, expected the names of the classes, in the order of their numbers"
        if recipe.segmentation.class_names and named_by_file:
            yield f"data.class_names_file: found {recipe.data.class_names_file} beside segmentation.class_names, expected one"
        twice = {name for name in recipe.segmentation.class_names if recipe.segmentation.class_names.count(name) > 1}
        if twice:
            yield f"segmentation.class_names: found {min(twice)!r} twice, expected a name for each class"
        values = recipe.segmentation.label_values
        num_names = len(recipe.segmentation.class_names) if not named_by_file else len(values or ())
        if values is not None and (len(set(values)) < len(values) or len(values) != num_names):
            yield f"segmentation.label_values: found {list(values)}, expected a number of its own for each of the class_names"
        if values is not None and recipe.segmentation.reduce_zero_label:
            yield "segmentation.reduce_zero_label: found true beside label_values, expected false: label_values name the classes"
        window, stride = recipe.segmentation.window, recipe.segmentation.window_stride
        if window is not None and stride is not None and stride > window:
            yield f"segmentation.window_stride: found {stride}, expected no more than the window ({window})"


def _unused_annotation_files(recipe: Recipe) -> Iterator[str]:
    """Yield the first key that names a COCO file or its images beside a kind of data that has its own."""
    if recipe.data.kind in ("auto", "coco", "shapes"):
        return
    section, default = recipe.detection, type(recipe).model_fields["detection"].default
    for key in ("train_json", "train_images", "val_json", "val_images"):
        if getattr(section, key) != getattr(default, key):
            yield f"detection.{key}: belongs to data.kind coco, but data.kind is {recipe.data.kind}, which has files of its own"
            return
