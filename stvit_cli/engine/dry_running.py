"""Dry run: build everything, take a training step, write nothing."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch

from stvit_cli.engine.distributed import joined_world
from stvit_cli.engine.failures import LESS_MEMORY, explained
from stvit_cli.engine.peak_memory import peak_memory
from stvit_cli.engine.progress import duration
from stvit_cli.engine.schedule import lr_at
from stvit_cli.engine.session import Session, build_session, training_batches
from stvit_cli.engine.slow_spots import slow_loader, unused_gpus
from stvit_cli.engine.step import TrainStep
from stvit_cli.engine.step_estimate import FEW, head_cost, state_bytes, try_images
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import Task
from stvit_cli.utils.machine_failures import machine_failures_explained
from stvit_cli.utils.memory import available_memory

# A first step pays for what later ones have ready; where it was quick, a second one is timed instead.
QUICK_SECONDS = 30.0
SMALL_STEP = 64
"""Images of a step on one process, up to which it is taken without a trial."""
LONG_SECONDS = 20.0
"""A step that would take longer is estimated."""


def dry_run(task: Task, recipe: Recipe) -> dict[str, Any]:
    """Build the run and take one real training step (two where the first was quick); write nothing.

    A step that would take long, or more memory than there is, is estimated by a forward and a backward pass of a few images.

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
    plan, recipe = session.plan, session.recipe
    per_process = plan.micro_batch_size * plan.accum_steps
    state, trial = state_bytes(session), None
    if per_process > SMALL_STEP:
        multiple = session.task.batch_multiple
        trial = try_images(session, -(-min(FEW, plan.micro_batch_size) // multiple) * multiple)
        needed = sum(state.values()) + trial.activation_bytes * plan.micro_batch_size
        seconds = trial.step_seconds(per_process, recipe.data.num_workers)
        room = available_memory() if session.world.device.type == "cpu" else None
        is_long = seconds > LONG_SECONDS or (room is not None and needed > room)
        if not any(session.world.gather(is_long)):
            trial = None
    head = head_cost(session)
    if trial is None:
        found = _take_steps(session)
    else:
        found = {
            "peak_memory_bytes": needed,
            "loss": trial.loss,
            "step_seconds": seconds,
            "data_wait": 1 - trial.seconds * per_process / seconds,
            "activation_bytes_per_image": trial.activation_bytes,
            "read_seconds_per_image": trial.read_seconds,
            "trial_images": trial.num_images,
        }
    return _facts(session, found["step_seconds"]) | found | {"state_bytes": state, "head": None if head is None else asdict(head)}


def _take_steps(session: Session) -> dict[str, Any]:
    """Take a step, a second one where the first was quick, and time it."""
    take_step = TrainStep(session)
    seconds, step, outcome = 0.0, 0, None
    with closing(iter(training_batches(session, 0))) as feed:
        while step < min(2, session.timeline.num_steps) and (outcome is None or seconds < QUICK_SECONDS):
            since = time.monotonic()
            outcome = take_step(step, feed)
            seconds, step = time.monotonic() - since, step + 1
    assert outcome is not None
    return {
        "peak_memory_bytes": peak_memory(session.world.device),
        "loss": outcome.losses["loss"],
        "step_seconds": seconds,
        "data_wait": outcome.waited / seconds,
    }


def _facts(session: Session, seconds: float) -> dict[str, Any]:
    """Return the plan of the run, and what follows from the time of a step."""
    timeline, plan, schedule = session.timeline, session.plan, session.recipe.schedule
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
        "images_per_second": plan.global_batch_size / seconds,
        "expected_seconds": seconds * timeline.num_steps,
        "notes": [*session.task.notes(), *unused_gpus(session.world)],
        "data_problems": session.world.on_main(session.task.data_problems),
    }


def _summary(session: Session, measured: dict[str, Any]) -> list[str]:
    schedule, timeline, device = session.recipe.schedule, session.timeline, session.world.device
    rates = ", ".join(f"{lr:.3g} in epoch {int(epoch) + 1}" for epoch, lr in measured["lr_by_epoch"].items())
    is_estimated, peak = "activation_bytes_per_image" in measured, measured["peak_memory_bytes"]
    slow = slow_loader(measured["data_wait"], 1.0, device, session.recipe.data.num_workers)
    notes = [note.replace("\n", " ") for note in [*measured["notes"], *filter(None, [slow])]]
    judged = (
        f"a forward and backward pass of {measured['trial_images']} images; no step was taken" if is_estimated else "one step"
    )
    return [
        f"batch       {session.plan}",
        f"schedule    {timeline.num_steps} steps, {timeline.steps_per_epoch} an epoch, {timeline.epoch(timeline.num_steps):g} "
        f"epochs; evaluated every {timeline.eval_every} steps",
        f"rate        {schedule.kind}: {rates}",
        f"parameters  {measured['params']:,}, of which {measured['params_trained']:,} are trained",
        *_head_line(measured),
        _estimated_memory(session, measured) if is_estimated else _measured_memory(peak, device),
        f"speed       {measured['images_per_second']:.1f} images/s, {measured['data_wait']:.0%} of the time waiting for data; "
        f"loss {measured['loss']:.4f}",
        f"time        about {duration(measured['expected_seconds'])} without evaluations, judged by {judged}",
        *(f"note        {note}" for note in notes),
        *(f"data        {problem}" for problem in measured["data_problems"] or ["nothing wrong was found"]),
    ]


def _measured_memory(peak: int | None, device: torch.device) -> str:
    return f"memory      {'not known' if peak is None else f'{peak / 2**30:.2f} GiB at most'} on {device}"


def _head_line(measured: dict[str, Any]) -> list[str]:
    """Return the line on a classifier of many classes: its weights with all that training keeps of them, logits, time."""
    head = measured["head"]
    if head is None:
        return []
    share = head["seconds"] * measured["global_batch_size"] / measured["processes"] / measured["step_seconds"]
    copies = sum(measured["state_bytes"].values()) / measured["state_bytes"]["weights"]
    state, logits = head["params"] * 4 * copies, head["logits_bytes"] * measured["batch_size_per_device"]
    return [
        f"head        {head['classes']} classes: {head['params']:,} parameters, {state / 2**20:.0f} MiB with gradients and "
        f"moments, {logits / 2**20:.0f} MiB of logits; {share:.1%} of a step"
    ]


def _estimated_memory(session: Session, measured: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in measured["state_bytes"].items())
    each, total = measured["activation_bytes_per_image"], measured["peak_memory_bytes"]
    return (
        f"memory      about {total / 2**30:.2f} GiB on {session.world.device}: {parts}, activations of "
        f"{measured['batch_size_per_device']} images at {each / 2**20:.0f} MiB (train.batch_size_per_device, model.checkpointing)"
    )
