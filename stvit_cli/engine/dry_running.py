"""Dry run: build everything, take a training step, write nothing."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

from stvit_cli.engine.distributed import joined_world
from stvit_cli.engine.failures import LESS_MEMORY, explained
from stvit_cli.engine.peak_memory import peak_memory
from stvit_cli.engine.progress import duration
from stvit_cli.engine.schedule import lr_at
from stvit_cli.engine.session import Session, build_session, training_batches
from stvit_cli.engine.step import TrainStep
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import Task
from stvit_cli.utils.machine_failures import machine_failures_explained

# A first step pays for what later ones have ready; where it was quick, a second one is timed instead.
QUICK_SECONDS = 30.0


def dry_run(task: Task, recipe: Recipe) -> dict[str, Any]:
    """Build the run and take one real training step (two where the first was quick); write nothing.

    Args:
        task: the task, built from the recipe.
        recipe: the settings of the run.

    Returns:
        The fields of `api.results.DryRunResult`.

    Raises:
        UserError: what would end the run at its start.
    """
    with joined_world(recipe.train.device) as world:
        with machine_failures_explained(LESS_MEMORY):
            session = build_session(task, recipe, world)
        with explained(session, None):
            measured = _measure(session)
        return measured | {"summary": _summary(session, measured)}


def _measure(session: Session) -> dict[str, Any]:
    timeline, plan, schedule = session.timeline, session.plan, session.recipe.schedule
    take_step = TrainStep(session)
    seconds, step, outcome = 0.0, 0, None
    with closing(iter(training_batches(session, 0))) as feed:
        while step < min(2, timeline.num_steps) and (outcome is None or seconds < QUICK_SECONDS):
            since = time.monotonic()
            outcome = take_step(step, feed)
            seconds, step = time.monotonic() - since, step + 1
    assert outcome is not None
    num_epochs = -(-timeline.num_steps // timeline.steps_per_epoch)
    epochs = sorted({0, 1, schedule.warmup_epochs, num_epochs // 2, num_epochs - 1} & set(range(num_epochs)))
    rate = {
        epoch: lr_at(epoch * timeline.steps_per_epoch, schedule, session.recipe.peak_lr, timeline.steps_per_epoch)
        for epoch in epochs
    }
    return {
        "global_batch_size": plan.global_batch_size,
        "batch_size_per_device": plan.micro_batch_size,
        "grad_accum_steps": plan.accum_steps,
        "processes": plan.world_size,
        "steps_per_epoch": timeline.steps_per_epoch,
        "steps": timeline.num_steps,
        "lr_by_epoch": {str(epoch): lr for epoch, lr in rate.items()},
        "params": sum(p.numel() for p in session.model.parameters()),
        "params_trained": sum(p.numel() for p in session.model.parameters() if p.requires_grad),
        "peak_memory_bytes": peak_memory(session.world.device),
        "loss": outcome.losses["loss"],
        "step_seconds": seconds,
        "images_per_second": plan.global_batch_size / seconds,
        "data_wait": outcome.waited / seconds,
        "expected_seconds": seconds * timeline.num_steps,
        "notes": session.task.notes(),
        "data_problems": session.world.on_main(session.task.data_problems),
    }


def _summary(session: Session, measured: dict[str, Any]) -> list[str]:
    schedule, timeline = session.recipe.schedule, session.timeline
    rates = ", ".join(f"{lr:.3g} in epoch {int(epoch) + 1}" for epoch, lr in measured["lr_by_epoch"].items())
    return [
        f"batch       {session.plan}",
        f"schedule    {timeline.num_steps} steps, {timeline.steps_per_epoch} an epoch, {timeline.epoch(timeline.num_steps):g} "
        f"epochs; evaluated every {timeline.eval_every} steps",
        f"rate        {schedule.kind}: {rates}",
        f"parameters  {measured['params']:,}, of which {measured['params_trained']:,} are trained",
        f"memory      {measured['peak_memory_bytes'] / 2**30:.2f} GiB at most on {session.world.device}",
        f"speed       {measured['images_per_second']:.1f} images/s, {measured['data_wait']:.0%} of the time waiting for data; "
        f"loss {measured['loss']:.4f}",
        f"time        about {duration(measured['expected_seconds'])} without evaluations, judged by one step",
        *(f"note        {note}" for note in measured["notes"]),
        *(f"data        {problem}" for problem in measured["data_problems"] or ["nothing wrong was found"]),
    ]
