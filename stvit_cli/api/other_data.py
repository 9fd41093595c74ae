"""The recipe keys for evaluating a model on data that are not those of its run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from stvit_cli.errors import UserError
from stvit_cli.recipe.classifier_checks import KINDS_OF
from stvit_cli.recipe.yaml import flow

if TYPE_CHECKING:
    from stvit_cli.recipe import Recipe


def keys_of_other_data(own: Recipe, data: str | os.PathLike[str]) -> list[str]:
    """Return the keys that read ``data`` with the settings of a recipe, as ``key=value``.

    Args:
        own: the recipe of the run, or of a weights file.
        data: the folder, or the table, to evaluate on.

    Returns:
        ``data.kind``, and the keys that were about the run's own files with their defaults.
    """
    kind = _kind(own, Path(data).expanduser())
    keys = {"data.kind": kind}
    about_files = {"table", "val_table", "image_dir"} if kind == "table" else set()
    for key, kinds in KINDS_OF.items():
        if kind not in kinds or key in about_files:
            default = type(own.data).model_fields[key].default
            if getattr(own.data, key) != default:
                keys[f"data.{key}"] = flow(default)
    return [f"{key}={value}" for key, value in keys.items()]


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
        return own.data.kind if own.data.kind in ("table", "idx") else usual
    return found.kind if found.kind in ("table", "idx") else usual
