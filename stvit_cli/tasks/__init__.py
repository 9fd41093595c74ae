"""The tasks: a model, its data, its loss and its metrics, built from a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from stvit_cli.data.images import ImageSource
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.tasks import registry
from stvit_cli.tasks.base import Evaluation, ImagePrediction, Task
from stvit_cli.tasks.spec import PredictOptions, TaskSpec, Trained
from stvit_cli.tasks.timm_choices import resolve_model
from stvit_cli.utils.text import printable, shell_command

__all__ = [
    "Evaluation",
    "ImagePrediction",
    "PredictOptions",
    "Task",
    "TaskSpec",
    "Trained",
    "build",
    "build_evaluation",
    "build_test",
    "create_from",
    "predict",
    "registry",
    "resolve",
]


def resolve(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Make the choices of a new run's recipe that depend on its data, such as a head without masks where no object has one.

    Called before `build`, and never for a run that is resumed: the recipe that a run saves holds what was chosen.

    Args:
        recipe: the recipe as the user gave it.

    Returns:
        The recipe to build, save and resume by, and a line for the user on each choice. Resolving it again changes nothing.

    Raises:
        UserError: the data are not as the recipe says.
    """
    recipe, notes = resolve_model(recipe)
    resolved, more = registry.get(recipe.task).resolve(recipe)
    return resolved, [*notes, *more]


def build(recipe: Recipe, *, weights: Path | None = None) -> Task:
    """Build the task of a recipe.

    Args:
        recipe: the recipe.
        weights: a weights file to start from.

    Raises:
        UserError: the data, the model or the weights are not as the recipe says.
    """
    task = registry.get(recipe.task).build(recipe, weights)
    _require_utf8(task.weights_info().class_names)
    return task


def build_evaluation(recipe: Recipe, info: WeightsInfo, *, whole: bool = False) -> Evaluation:
    """Build what evaluates a trained model.

    Args:
        recipe: the recipe of the evaluation: its data and their preparation.
        info: the metadata of the model's weights file; the classes are its classes.
        whole: use all images of a folder that is not divided into training and validation, not only the held-out share.

    Raises:
        UserError: the data are not there, or have classes that the model does not know.
    """
    return registry.get(recipe.task).build_evaluation(recipe, info, whole=whole)


def build_test(recipe: Recipe, info: WeightsInfo) -> Evaluation:
    """Build what evaluates a trained model on the test images of its recipe (``data.test_split``).

    Args:
        recipe: of the run.
        info: the metadata of its weights file.

    Raises:
        UserError: the recipe names no test images, or they are not there.
    """
    build = registry.get(recipe.task).build_test
    if build is None:
        raise UserError(f"Task {recipe.task} has no test images.")
    return build(recipe, info)


def create_from(info: WeightsInfo) -> nn.Module:
    """Create the model that a weights file describes, freshly initialised.

    Raises:
        UserError: no such task or model.
    """
    return registry.get(info.task).create_model(info)


def predict(
    trained: Trained, images: Sequence[ImageSource], options: PredictOptions | None = None, *, device: torch.device | str = "cpu"
) -> Iterator[ImagePrediction]:
    """Yield the prediction for each image file, in order.

    Args:
        trained: the model, see `tasks.loading.open_trained`.
        images: the image files; for one that cannot be read the prediction has an ``error``.
        options: the number of classes, the least score.
        device: where the model runs.
    """
    return registry.get(trained.info.task).predict(trained, images, options or PredictOptions(), torch.device(device))


def _require_utf8(class_names: Sequence[str]) -> None:
    """Raise UserError for a class name that is not UTF-8, as of a folder in another encoding: a weights file cannot hold it."""
    for index, name in enumerate(class_names):
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(
                f"The name of class {index}, '{printable(name)}', is not UTF-8, and the weights file could not hold it.\n"
                f"Rename it, such as: {shell_command('mv', Path(name), 'NAME')}"
            )
