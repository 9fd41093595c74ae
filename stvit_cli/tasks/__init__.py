"""The tasks: a model, its data, its loss and its metrics, built from a recipe."""

from __future__ import annotations

from pathlib import Path

from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import Task
from stvit_cli.tasks.classification import build_classification_task

__all__ = ["Task", "build"]


def build(recipe: Recipe, *, weights: Path | None = None) -> Task:
    """Build the task of a recipe; ``weights`` is a file to start from.

    Raises:
        UserError: the data, the model or the weights are not as the recipe says.
    """
    return build_classification_task(recipe, weights)
