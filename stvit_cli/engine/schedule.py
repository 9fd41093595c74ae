"""A run in steps: how many there are, when it is evaluated, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stvit_cli.data.sampling import steps_per_epoch as steps_in_epoch
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe, ScheduleSection


@dataclass(frozen=True)
class Timeline:
    """Steps are optimiser updates, counted from 0."""

    num_steps: int
    steps_per_epoch: int
    eval_every: int

    def epoch(self, step: int) -> float:
        """Return the number of epochs after ``step`` steps."""
        return step / self.steps_per_epoch

    def eval_due(self, step: int) -> bool:
        """Whether to evaluate after ``step`` steps."""
        return step == self.num_steps or (step > 0 and step % self.eval_every == 0)


def build_timeline(recipe: Recipe, num_samples: int) -> Timeline:
    """Compute the lengths of a run. An epoch is the number of batches in the training set, see ``data.drop_last``.

    Raises:
        UserError: the data set is smaller than one batch.
    """
    steps_per_epoch = steps_in_epoch(num_samples, recipe.train.global_batch_size, recipe.data.drop_last)
    if num_samples < recipe.train.global_batch_size:
        raise UserError(
            f"train.global_batch_size is {recipe.train.global_batch_size}, "
            f"but there are only {num_samples} images to train on.\n"
            f"Expected at most {num_samples}, such as train.global_batch_size={2 ** int(math.log2(max(num_samples, 1)))}"
        )
    return Timeline(
        num_steps=length(recipe.schedule, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        eval_every=recipe.train.eval_every_steps or recipe.train.eval_every_epochs * steps_per_epoch,
    )


def length(schedule: ScheduleSection, steps_per_epoch: int) -> int:
    """Return the number of steps of a run."""
    return schedule.steps or schedule.epochs * steps_per_epoch


def lr_at(step: int, schedule: ScheduleSection, peak_lr: float, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, before a layer's own factor.

    Linear warm-up from ``warmup_lr``, then one of three schedules, which all count from step 0, warm-up included:

    - ``cosine``: down to ``min_lr``; with the warm-up this is timm's CosineLRScheduler with DeiT's arguments.
    - ``step``: multiplied by 0.1 at each of the milestones.
    - ``poly``: polynomial decay to ``min_lr``; the warm-up ends on the decayed rate, as in mmcv.

    With ``update: epoch`` the rate is constant within an epoch, as in DeiT, except in a warm-up counted in steps.
    """
    epoch = step // steps_per_epoch if schedule.update == "epoch" else step / steps_per_epoch
    num_epochs = schedule.epochs if schedule.steps is None else schedule.steps / steps_per_epoch
    lr = peak_lr
    if schedule.kind == "poly":
        lr = schedule.min_lr + (peak_lr - schedule.min_lr) * (1 - epoch / num_epochs) ** schedule.power
    if step < schedule.warmup_steps:
        return schedule.warmup_lr + step * (lr - schedule.warmup_lr) / schedule.warmup_steps
    if epoch < schedule.warmup_epochs:
        return schedule.warmup_lr + epoch * (lr - schedule.warmup_lr) / schedule.warmup_epochs
    if schedule.kind == "step":
        return peak_lr * 0.1 ** sum(epoch >= milestone for milestone in schedule.milestones)
    if schedule.kind == "cosine":
        return schedule.min_lr + 0.5 * (peak_lr - schedule.min_lr) * (1 + math.cos(math.pi * epoch / num_epochs))
    return lr
