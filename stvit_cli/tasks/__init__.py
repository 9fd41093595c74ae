"""The tasks: a model, its data, its loss and its metrics, built from a recipe."""

from __future__ import annotations

from pathlib import Path

from stvit_cli.models.weights import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import Evaluation, Task
from stvit_cli.tasks.classification import build_classification_evaluation, build_classification_task

__all__ = ["Evaluation", "Task", "build", "build_evaluation"]


def build(recipe: Recipe, *, weights: Path | None = None) -> Task:
    """Build the task of a recipe; ``weights`` is a file to start from.

    Raises:
        UserError: the data, the model or the weights are not as the recipe says.
    """
    return build_classification_task(recipe, weights)


def build_evaluation(recipe: Recipe, info: WeightsInfo, *, whole: bool = False) -> Evaluation:
    """Build what evaluates a trained model.

    Args:
        info: what the model's weights file says of it; the classes are its classes.
        whole: where the data's folder is not divided, take all of it instead of the held-out share.

    Raises:
        UserError: the data are not there, or have classes that the model does not know.
    """
    return build_classification_evaluation(recipe, info, whole)
