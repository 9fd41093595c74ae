"""Evaluation of one model or several on the task's validation set, by any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

import torch
from torch import nn

from stvit_cli.data.loader import build_eval_loader
from stvit_cli.engine.distributed import World, joined_world
from stvit_cli.tasks.base import Evaluation, move


def evaluate(
    task: Evaluation, model: nn.Module, device: torch.device | str = "cpu", *, batch_size: int = 64, num_workers: int = 0
) -> dict[str, float]:
    """Return the task's metrics of ``model`` on its validation set. Under torchrun the processes share the work.

    The model is moved to the device and left in evaluation mode.
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
) -> dict[str, dict[str, float]] | None:
    """Evaluate several models in one pass over the data.

    Args:
        stopped: asked between batches; where it says yes on any process, the evaluation is given up.
        advance: told how many batches are done, and of how many.

    Returns:
        The metrics of each model, the same on every process; None where the evaluation was given up.
    """
    loader = build_eval_loader(task.val_set, task.collate_eval, batch_size, num_workers, world.rank, world.size)
    evaluators = {name: task.evaluator() for name in models}
    for model in models.values():
        model.eval()
    given_up = False
    # Compiled blocks run as written here: another compilation for each shape would take longer than it saves.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), closing(iter(loader)) as batches:
        for done, batch in enumerate(batches, start=1):
            batch = move(batch, world.device)
            for name, model in models.items():
                evaluators[name].update(model, batch)
            advance(done, len(loader))
            if stopped():
                given_up = True
                break
    reports = world.gather((given_up, {name: evaluator.state() for name, evaluator in evaluators.items()}))
    if any(report[0] for report in reports):
        return None
    return {name: dict(evaluator.compute([report[1][name] for report in reports])) for name, evaluator in evaluators.items()}
