"""Weights that are not finite end a run before anything is written over what is still good.

A loss or a gradient that is not finite is found before the update (`step`). The update itself can overflow too; where a step
follows, its loss tells, and where none does, these checks before an evaluation and before a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from stvit_cli.engine import checkpoint
from stvit_cli.engine.branch import restart_advice
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.engine.session import Session
from stvit_cli.engine.state import RunState
from stvit_cli.errors import UserError
from stvit_cli.utils.troubleshooting import see


def require_finite_weights(session: Session, state: RunState, run_dir: RunDir) -> None:
    """Check the weights and their moving average.

    Args:
        session: holds the weights.
        state: how far the run is.
        run_dir: where earlier weights were saved.

    Raises:
        UserError: they are infinite or NaN; the message says which weights are still good.
    """
    models: Mapping[str, nn.Module] = {"weights": session.model}
    if session.ema is not None:
        models = {**models, "moving average of the weights": session.ema.module}
    for what, model in models.items():
        names = non_finite(model)
        if names:
            advice = restart_advice(session.recipe, run_dir.path, state.step - 1) or [
                f"Train with a lower optim.lr (it is {session.recipe.optim.lr:g}), or with optim.clip_grad_norm=1."
            ]
            first = f"The {what} became infinite or not a number by step {state.step}: {len(names)} tensors, such as {names[0]}."
            raise UserError("\n".join([first, still_good(state, run_dir), *advice, see("nan-loss")]))


def non_finite(model: nn.Module) -> list[str]:
    """Return the names of a model's parameters and buffers with values that are infinite or not a number."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if not tensors:
        return []
    # One wait for the device. As in `tasks.finite`, a sum that is finite has only finite terms.
    sums = torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors.values()]).isfinite().tolist()
    return [
        name
        for (name, tensor), is_finite in zip(tensors.items(), sums, strict=True)
        if not (is_finite or tensor.isfinite().all())
    ]


def still_good(state: RunState, run_dir: RunDir) -> str:
    """Return a line that names the earlier weights of a run that can be used."""
    earlier = [path for path in checkpoint.checkpoints(run_dir.checkpoints) if path.name != f"step_{state.step:08d}"]
    good = [f"the checkpoint {path}" for path in earlier[-1:]]
    if state.best and state.best["step"] != state.step and run_dir.best.is_file():
        good.append(f"{run_dir.best}, of step {state.best['step']}")
    return f"Still good: {', and '.join(good)}." if good else "No earlier weights of this run were saved."
