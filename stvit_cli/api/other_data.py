"""The recipe keys for evaluating a model on data that are not those of its run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stvit_cli.errors import UserError
from stvit_cli.recipe.classifier_checks import KINDS_OF
from stvit_cli.recipe.yaml import flow

if TYPE_CHECKING:
    from stvit_cli.data.layouts import Layout
    from stvit_cli.recipe import Recipe


def keys_of_other_data(own: Recipe, data: str | os.PathLike[str], overrides: Sequence[str] = ()) -> list[str]:
    """Return the keys that read ``data`` with the settings of a recipe, as ``key=value``.

    Args:
        own: the recipe of the run, or of a weights file.
        data: the folder, the annotation file or the table to evaluate on.
        overrides: ``key=value`` that the user gives; these keys are left to them.

    Returns:
        ``data.dir``, ``data.kind``, the keys that a layout other than the run's own needs, and those that were about the run's
        own files with their defaults.
    """
    from stvit_cli.api.own_data import keys_of

    given = keys_of(overrides)
    keys = {"data.dir": flow(os.fspath(data)), **_keys(own, Path(data).expanduser(), given)}
    return [f"{key}={value}" for key, value in keys.items() if key not in given or key == "data.dir"]


def _keys(own: Recipe, data: Path, given: Mapping[str, object]) -> dict[str, str]:
    if own.task != "classification" and not given.get("data.kind") and not _has_own_files(own, data):
        layout = _other_layout(own, data, given)
        if layout is not None:
            return {key: flow(value) for key, value in layout.keys.items() if key != "detection.head"}
    kind = str(given.get("data.kind") or _kind(own, data))
    keys = {"data.kind": kind}
    about_files = {"test_split", *(("table", "val_table", "image_dir") if kind == "table" else ())}
    for key, kinds in KINDS_OF.items():
        if kind not in kinds or key in about_files:
            default = type(own.data).model_fields[key].default
            if getattr(own.data, key) != default:
                keys[f"data.{key}"] = flow(default)
    return keys


def _has_own_files(own: Recipe, data: Path) -> bool:
    """Return whether a folder has the file or folder that the run's own data had for its evaluation."""
    if own.task == "segmentation":
        return (data / (own.segmentation.val_images or own.segmentation.train_images)).is_dir()
    return own.data.kind in ("coco", "shapes") and (data / (own.detection.val_json or own.detection.train_json)).is_file()


def _other_layout(own: Recipe, data: Path, given: Mapping[str, object]) -> Layout | None:
    """Return the layout of a folder, if it is recognized and one of the recipe's task."""
    from stvit_cli.data.layouts import find_layout

    try:
        found = find_layout(data, given, task=own.task)
    except UserError:  # not recognized, or ambiguous: whoever reads the data says what is wrong
        return None
    return found if found.task == own.task else None


def _kind(own: Recipe, data: Path) -> str:
    from stvit_cli import tasks
    from stvit_cli.data.layouts import find_layout

    if own.task != "classification":  # in the layout of the run's own data, unless that is in none
        return tasks.registry.get(own.task).folder_kind if own.data.kind in ("digits", "shapes") else own.data.kind
    usual = "imagefolder"
    if own.data.multi_label:
        return "table"
    try:
        found = find_layout(data)
    except UserError:  # not recognized, or ambiguous: whoever reads the data says what is wrong
        return own.data.kind if own.data.kind in ("table", "idx", "shards") else usual
    return found.kind if found.kind in ("table", "idx", "shards") else usual
