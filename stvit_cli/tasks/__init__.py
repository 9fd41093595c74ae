"""The tasks: a model, its data, its loss and its metrics, built from a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import Evaluation, Task
from stvit_cli.tasks.classification.task import build_classification_evaluation, build_classification_task
from stvit_cli.utils.text import printable, shell_command

__all__ = ["Evaluation", "Task", "build", "build_evaluation", "create_from"]


def build(recipe: Recipe, *, weights: Path | None = None) -> Task:
    """Build the task of a recipe; ``weights`` is a file to start from.

    Raises:
        UserError: the data, the model or the weights are not as the recipe says.
    """
    task = _build(recipe, weights)
    _require_text(task.weights_info().class_names)
    return task


def _build(recipe: Recipe, weights: Path | None) -> Task:
    if recipe.task == "detection":
        with _from_the_extra():
            from stvit_cli.tasks.detection.task import build_detection_task  # here: its libraries take a second to import
        return build_detection_task(recipe, weights)
    if recipe.task == "segmentation":
        with _from_the_extra():
            from stvit_cli.tasks.segmentation.task import build_segmentation_task
        return build_segmentation_task(recipe, weights)
    return build_classification_task(recipe, weights)


def build_evaluation(recipe: Recipe, info: WeightsInfo, *, whole: bool = False) -> Evaluation:
    """Build what evaluates a trained model.

    Args:
        info: what the model's weights file says of it; the classes are its classes.
        whole: where the data's folder is not divided, take all of it instead of the held-out share.

    Raises:
        UserError: the data are not there, or have classes that the model does not know.
    """
    if recipe.task == "detection":
        with _from_the_extra():
            from stvit_cli.tasks.detection.task import build_detection_evaluation
        return build_detection_evaluation(recipe, info)
    if recipe.task == "segmentation":
        with _from_the_extra():
            from stvit_cli.tasks.segmentation.task import build_segmentation_evaluation
        return build_segmentation_evaluation(recipe, info)
    return build_classification_evaluation(recipe, info, whole)


def create_from(info: WeightsInfo) -> nn.Module:
    """Create the model that a weights file describes, freshly initialised."""
    if info.task == "detection":
        with _from_the_extra():
            from stvit_cli.tasks.detection.task import create_from as create_detector_from
        return create_detector_from(info)
    if info.task == "segmentation":
        with _from_the_extra():
            from stvit_cli.tasks.segmentation.task import create_from as create_segmenter_from
        return create_segmenter_from(info)
    return create_model(info.model, info.num_classes, info.in_chans, grid_sizes=info.grid_sizes)


def _require_text(class_names: Sequence[str]) -> None:
    """Raise UserError for a name that is no text, as of a folder in another encoding: no weights file could hold it."""
    for index, name in enumerate(class_names):
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(
                f"The name of class {index}, '{printable(name)}', is not UTF-8, and the weights file could not hold it.\n"
                f"Rename it, such as: {shell_command('mv', Path(name), 'NAME')}"
            )


@contextmanager
def _from_the_extra() -> Iterator[None]:
    """Say how to get what detection and segmentation need, where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("stvit_cli"):
            raise
        raise UserError(
            f"Detection and segmentation need {error.name}, which is not installed. Get it with: pip install 'stvit[dense]'"
        ) from None
