"""What of a recipe depends on the number of training images: batches of a small set, and epochs for enough steps."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from stvit_cli.data.sampling import steps_per_epoch
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe.validation import contradictions

SHARED_BY = (12, 4, 2, 1)
"""A reduced batch is divisible by the first of these that the images suffice for, so that 1, 2, 3, 4 and 6 processes see the
same batches."""


def fit_to_data(
    recipe: Recipe, num_samples: int, world_size: int = 1, multiple: int = 1, given: Collection[str] = ()
) -> tuple[Recipe, list[str]]:
    """Reduce ``train.global_batch_size`` to the number of images, and multiply the epochs up to ``schedule.min_steps``.

    Args:
        recipe: of a new run.
        num_samples: number of training images.
        world_size: number of processes.
        multiple: a micro-batch must be a multiple of this.
        given: keys that the user has set, which stay as they are.

    Returns:
        The recipe, and a line for the user on each change. Doing it again changes nothing.

    Raises:
        UserError: with the reduced batch the learning rates contradict each other.
    """
    notes = []
    batch = recipe.train.global_batch_size
    reduced = reduced_batch(num_samples, world_size, multiple) if batch > num_samples else batch
    if 0 < reduced < batch:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"global_batch_size": reduced})})
        found = next(contradictions(recipe, saved=True), None)
        note = f"train.global_batch_size: {batch} -> {reduced}, as there are {num_samples} images to train on"
        if found is not None:
            raise UserError(
                f"{note}.\n{found}\nThe recipes own-images, own-boxes, own-masks and own-maps are made for few images."
            )
        notes.append(note)
    if recipe.schedule.min_steps is not None:
        recipe, more = _with_min_steps(recipe, num_samples, given)
        notes += more
    return recipe, notes


def reduced_batch(num_samples: int, world_size: int = 1, multiple: int = 1) -> int:
    """Return the batch size for a set that is smaller than the batch; 0 where the processes cannot share its images.

    >>> reduced_batch(45), reduced_batch(45, world_size=2), reduced_batch(10), reduced_batch(3)
    (36, 36, 8, 2)
    """
    for shared in SHARED_BY:
        step = math.lcm(shared, world_size * multiple)
        if num_samples >= step:
            return num_samples // step * step
    return 0


def _with_min_steps(recipe: Recipe, num_samples: int, given: Collection[str]) -> tuple[Recipe, list[str]]:
    schedule, train = recipe.schedule, recipe.train
    length = steps_per_epoch(num_samples, train.global_batch_size, recipe.data.drop_last)
    assert schedule.min_steps is not None
    least = schedule.min_steps
    changes: dict[str, Any] = {"min_steps": None}
    notes: list[str] = []
    if schedule.steps is None and length and length * schedule.epochs < least:
        epochs = -(-least // length)
        factor = epochs / schedule.epochs
        changes |= {
            "epochs": epochs,
            "warmup_epochs": round(schedule.warmup_epochs * factor),
            "milestones": tuple(round(milestone * factor) for milestone in schedule.milestones),
        }
        if "train.eval_every_epochs" not in given:
            every = max(round(train.eval_every_epochs * factor), 1)
            recipe = recipe.model_copy(update={"train": train.model_copy(update={"eval_every_epochs": every})})
        notes.append(f"schedule.epochs: {schedule.epochs} -> {epochs}, for at least {least} steps (schedule.min_steps)")
    return recipe.model_copy(update={"schedule": schedule.model_copy(update=changes)}), notes
