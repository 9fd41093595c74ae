"""Evaluation of one model or several on the task's validation set, by any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from stvit_cli.data.loader import build_eval_loader
from stvit_cli.engine.distributed import World, joined_world
from stvit_cli.errors import UserError
from stvit_cli.tasks.base import NOT_FINITE, Evaluation, Evaluator, HasSubset, KeepsPredictions, NonFiniteOutputsError, move
from stvit_cli.tasks.predictions import Predictions
from stvit_cli.utils.metric_names import SUBSET
from stvit_cli.utils.text import first_few

ENOUGH = 50
"""Number of images without finite outputs after which a process stops the evaluation."""
NUM_NAMED = 4
"""Number of such images that are named in the message."""


class NonFiniteEvaluationError(UserError):
    """A model's outputs for images of the validation set are infinite or not a number."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation of a model found.

    Attributes:
        metrics: by name, the same on every process.
        make_predictions: see `predictions`, which calls it.
        precision: what the model computed in: fp32 or bf16.
    """

    metrics: dict[str, float]
    make_predictions: Callable[[], Predictions | None] = lambda: None
    precision: str = "fp32"

    @cached_property
    def predictions(self) -> Predictions | None:
        """The predictions of every image, on the main process alone; None where the task keeps none.

        Made when they are first asked for: of most evaluations in a training, of weights that are not the best, nobody does.
        """
        return self.make_predictions()


def evaluate(
    task: Evaluation, model: nn.Module, device: torch.device | str = "cpu", *, batch_size: int = 64, num_workers: int = 0
) -> dict[str, float]:
    """Return the metrics that `evaluate_keeping` finds."""
    return evaluate_keeping(task, model, device, batch_size=batch_size, num_workers=num_workers).metrics


def evaluate_keeping(
    task: Evaluation, model: nn.Module, device: torch.device | str = "cpu", *, batch_size: int = 64, num_workers: int = 0
) -> Evaluated:
    """Evaluate ``model`` on the task's validation set. Under torchrun the images are divided among the processes.

    Args:
        task: the validation set and its metrics.
        model: moved to the device and left in evaluation mode.
        device: where to evaluate.
        batch_size: images in one forward pass of one process.
        num_workers: loader workers of one process.

    Returns:
        The metrics and the predictions.

    Raises:
        NonFiniteEvaluationError: see `evaluate_models`.
    """
    with joined_world(torch.device(device).type) as world:
        model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        results = evaluate_models(task, {"": model}, world, batch_size=batch_size, num_workers=num_workers)
    assert results is not None
    return results[""]


def evaluate_models(
    task: Evaluation,
    models: Mapping[str, nn.Module],
    world: World,
    *,
    batch_size: int,
    num_workers: int,
    stopped: Callable[[], bool] = lambda: False,
    advance: Callable[[int, int], None] = lambda done, total: None,
    images: str = "the validation set",
) -> dict[str, Evaluated] | None:
    """Evaluate several models in one pass over the data, and in another one over those of ``eval.subset``.

    Args:
        task: computes the metrics.
        models: by name, such as the weights and their moving average.
        world: the processes among which the images are divided.
        batch_size: images in one forward pass of one process.
        num_workers: loader workers of one process.
        stopped: called after each batch; if it returns True on any process, the evaluation is abandoned.
        advance: called with the number of batches done and their total.
        images: what they are called in a message.

    Returns:
        What was found of each model, with the metrics of ``eval.subset`` as ``subset_NAME``; None if it was abandoned.

    Raises:
        NonFiniteEvaluationError: on rank 0 if outputs are not finite; it gives the number of such images and some names. The
            other processes then exit with code 2 and no message.
    """
    found = _evaluate_once(task, models, world, batch_size, num_workers, stopped, advance, images)
    subset = task.subset if isinstance(task, HasSubset) else None
    if found is None or subset is None:
        return found
    among = _evaluate_once(subset, models, world, batch_size, num_workers, stopped, advance, "eval.subset")
    if among is None:
        return None
    named = {model: {f"{SUBSET}{name}": value for name, value in among[model].metrics.items()} for model in models}
    return {model: replace(found[model], metrics=found[model].metrics | named[model]) for model in models}


def _evaluate_once(
    task: Evaluation,
    models: Mapping[str, nn.Module],
    world: World,
    batch_size: int,
    num_workers: int,
    stopped: Callable[[], bool],
    advance: Callable[[int, int], None],
    images: str,
) -> dict[str, Evaluated] | None:
    """Evaluate on one set of images; see `evaluate_models`."""
    on_gpu = world.device.type == "cuda"
    loader = build_eval_loader(task.val_set, task.collate_eval, batch_size, num_workers, world.rank, world.size, on_gpu)
    evaluators = {name: task.evaluator() for name in models}
    bad = {name: Bad() for name in models}
    for model in models.values():
        model.eval()
    is_abandoned = False
    # Compiled blocks run as written here: another compilation for each shape would take longer than it saves.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), closing(iter(loader)) as batches:
        for done, batch in enumerate(batches, start=1):
            batch = move(batch, world.device)
            for name, model in models.items():
                try:
                    evaluators[name].update(model, batch)
                except NonFiniteOutputsError as error:
                    bad[name].add(error.finite, task.describe_eval(batch))
            advance(done, len(loader))
            if stopped():
                is_abandoned = True
                break
            if any(found.count >= ENOUGH for found in bad.values()):
                break
    reports = world.gather((is_abandoned, bad, {name: evaluator.state() for name, evaluator in evaluators.items()}))
    if any(report[0] for report in reports):
        return None
    for name in models:
        _require_finite(name, [report[1][name] for report in reports], world, images)
    return {name: _computed(evaluator, [report[2][name] for report in reports], world) for name, evaluator in evaluators.items()}


def _computed(evaluator: Evaluator, states: list[Any], world: World) -> Evaluated:
    """Return what the states of all processes come to."""
    metrics = dict(evaluator.compute(states))
    if isinstance(evaluator, KeepsPredictions) and world.is_main:
        return Evaluated(metrics, partial(evaluator.predictions, states))
    return Evaluated(metrics)


@dataclass
class Bad:
    """The images for which a model's outputs are not finite, seen by one process: their number, and some names."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, finite: Sequence[bool], names: Sequence[str]) -> None:
        """Add those of a batch."""
        found = [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]
        self.count += len(found)
        self.names += found[: NUM_NAMED - len(self.names)]


def _require_finite(model: str, parts: Sequence[Bad], world: World, images: str) -> None:
    count = sum(part.count for part in parts)
    if not count:
        return
    if not world.is_main:
        raise SystemExit(2)
    names = [name for part in parts for name in part.names]
    at_least = "at least " if any(part.count >= ENOUGH for part in parts) else ""
    whose = "moving average" if model else "model"
    shown = first_few(names, NUM_NAMED) if count <= NUM_NAMED else f"{', '.join(names[:NUM_NAMED])} and others"
    raise NonFiniteEvaluationError(
        f"The {whose}'s outputs are {NOT_FINITE} for {at_least}{count} images of {images}, so there are no metrics.\n"
        f"Images: {shown}.\n"
        "Finite weights can overflow in the model: train with a lower optim.lr, or evaluate other weights."
    )
