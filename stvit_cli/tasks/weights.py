"""Weights of a task: what a file is to say of itself, and files to start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from stvit_cli.errors import UserError
from stvit_cli.models.options import given, options_of
from stvit_cli.models.weights.file import (
    LoadReport,
    WeightsFile,
    WeightsInfo,
    describe,
    load_weights,
    match_weights,
    read_weights,
)
from stvit_cli.models.weights.hub import WEIGHTS, download_weights, hub_name, local_dir
from stvit_cli.recipe import Recipe
from stvit_cli.recipe.io import recipe_hash
from stvit_cli.utils.packaged_weights import packaged_file

CLASSIFIER_ONLY = ("proj.", "norm.", "head.")
"""The layers of a classifier after its stages, which a backbone does not have."""


_IN_A_RUN = ("best.safetensors", "last.safetensors")


def weights_file(path: Path) -> Path:
    """Return the weights file that is meant. Raises UserError where there is none.

    Args:
        path: a file, a run directory, whose best weights are taken, a name of `list_weights`, a folder that `stvit push` wrote,
            or ``hf-hub:OWNER/NAME`` with ``@REVISION``, which is downloaded.
    """
    if (packaged := packaged_file(path)) is not None:
        return packaged
    if (repo := hub_name(path)) is not None:
        return download_weights(repo)
    path = local_dir(path) or path
    if not path.is_dir():
        return path
    for name in (*_IN_A_RUN, WEIGHTS):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: a folder without weights; expected a file, or a run directory with {' or '.join(_IN_A_RUN)}.")


def recipe_weights_info(recipe: Recipe, class_names: Sequence[str]) -> WeightsInfo:
    """Return the metadata of the weights of a recipe's model, as far as they are the same for every task."""
    return WeightsInfo(
        model=recipe.model.name,
        task=recipe.task,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        in_chans=recipe.model.in_chans,
        image_size=recipe.data.image_size,
        mean=recipe.data.mean,
        std=recipe.data.std,
        interpolation=recipe.augment.interpolation,
        recipe_hash=recipe_hash(recipe),
        **given(options_of(recipe.model)),
    )


def is_of_timm(file: WeightsFile) -> bool:
    """Return whether a file has no description and is of none of the built-in models: it can be timm's."""
    if file.info is not None:
        return False
    try:
        describe(file)
    except UserError:
        return True
    return False


def load_initial_weights(
    model: nn.Module,
    backbone: nn.Module,
    weights: Path,
    *,
    task: str,
    class_names: Sequence[str],
    class_layers: Sequence[str],
    branch: tuple[str, str] | None = None,
) -> list[str]:
    """Load a file into a detector or segmenter: one for the same task, or a classifier's into the backbone.

    Layers with a row for each class are loaded only where the classes of the file are the same.

    Args:
        model: the model to train.
        backbone: its stages.
        weights: the file.
        task: the task of the model.
        class_names: the classes of the model.
        class_layers: parts of the names of the tensors that have a row for each class.
        branch: a part of the model that not every model of the task has: what it is called, and part of the names of its
            tensors. Where the file has none of it, it is new; where the model has none, it is not used.

    Returns:
        Notes for the user on what was loaded.

    Raises:
        UserError: the file cannot be read, or is of another model or task.
    """
    file = read_weights(weights)
    if is_of_timm(file):
        report = load_weights(backbone, file)
        return [f"{len(report.loaded)} tensors of the backbone from {weights}; the other layers are new.", *report_notes(report)]
    info = describe(file)
    if info.task == task:
        return _load_same_task(model, file, class_layers, tuple(info.class_names) == tuple(class_names), branch)
    if info.task != "classification":
        raise UserError(f"{weights} holds a model for {info.task}; expected one for {task} or classification.")
    stages = {name: value for name, value in file.state_dict.items() if not name.startswith(CLASSIFIER_ONLY)}
    report = load_weights(backbone, replace(file, state_dict=stages), new_head=True)  # of another number of channels too
    return [f"{len(report.loaded)} tensors of the backbone from {weights}; the other layers are new.", *report_notes(report)]


def _load_same_task(
    model: nn.Module, file: WeightsFile, class_layers: Sequence[str], same_classes: bool, branch: tuple[str, str] | None
) -> list[str]:
    own, state_dict = model.state_dict(), dict(file.state_dict)
    branch_name, in_branch = branch if branch is not None else ("", "\0")
    new_branch = [name for name in own if in_branch in name] if not any(in_branch in name for name in state_dict) else []
    unused = [name for name in state_dict if in_branch in name] if not any(in_branch in name for name in own) else []
    new = [
        name
        for name, value in own.items()
        if any(layer in name for layer in class_layers)
        and name not in new_branch
        and not (same_classes and name in state_dict and state_dict[name].shape == value.shape)
    ]
    for name in [*new, *unused]:
        state_dict.pop(name, None)
    part = replace(file, state_dict=state_dict)
    report = match_weights(model, part)
    missing = [name for name in report.missing if name not in new and name not in new_branch]
    if missing:
        count = len(own)
        raise UserError(
            f"{file.path}: these are no weights of this model: {len(missing)} of its {count} tensors are missing, such as "
            f"{missing[0]}."
        )
    load_weights(model, part)
    notes = [f"{len(report.loaded)} tensors from {file.path}.", *report_notes(replace(report, missing=[]))]
    if new:
        notes.append(f"{len(new)} tensors are new: the file has other classes.")
    if new_branch:
        notes.append(f"{len(new_branch)} tensors of {branch_name} are new: the file has none.")
    if unused:
        notes.append(f"{len(unused)} tensors of {branch_name} in the file were not used: this model has none.")
    return notes


def report_notes(report: LoadReport) -> list[str]:
    """Return a warning for tensors that the file lacks, and one for tensors of the file that the model does not have."""
    notes = []
    if report.missing:
        missing = f"{len(report.missing)} tensors are not in the file and keep their initial values"
        notes.append(f"Warning: {missing}, such as {report.missing[0]}.")
    if report.unexpected:
        notes.append(f"Warning: {len(report.unexpected)} tensors of the file were not used, such as {report.unexpected[0]}.")
    return notes
