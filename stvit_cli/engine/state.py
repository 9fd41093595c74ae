"""What a checkpoint keeps of a run, and how a run is restored from it, bit-identical."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sized
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, cast

import torch
from torch import Tensor

from stvit_cli.engine.checkpoint import Checkpoint, Tensors
from stvit_cli.engine.optim import load_optimizer_state, optimizer_numbers, optimizer_tensors
from stvit_cli.engine.session import Session, keep_kernels
from stvit_cli.errors import UserError
from stvit_cli.tasks.base import HasSubset


@dataclass
class RunState:
    """The state of a run beside its tensors, exact in JSON. It has no state of random generators: see `seeding`.

    Attributes:
        step: steps taken.
        evaluated: the step after which the last evaluation was made; -1 for none.
        metrics: of that evaluation.
        best: the best evaluation so far: ``step``, ``ema`` (whether of the moving average) and its metrics; empty for none.
        stale: evaluations since the main metric last improved.
        window: sums of the losses since the last row of the metrics, over ``window_steps`` steps.
        skipped: images that could not be read, so far.
        seconds: spent in training so far.
    """

    step: int = 0
    evaluated: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    stale: int = 0
    window: dict[str, float] = field(default_factory=dict)
    window_steps: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def choose_best(self, results: Mapping[str, Mapping[str, float]], main: str) -> str | None:
        """Compare an evaluation, made after ``step``, with the best one so far.

        Args:
            results: the metrics by model: the weights (an empty name) and their moving average (``ema_``).
            main: the metric that decides.

        Returns:
            The name of the model that is the best so far; None: the best one is still an earlier one.
        """
        winner = max(results, key=lambda prefix: _rank(results[prefix], main))
        best = self.best.get("metrics")
        self.stale = 0 if best is None or results[winner][main] > best[main] else self.stale + 1
        if best is not None and _rank(results[winner], main) <= _rank(best, main):
            return None
        self.best = {"step": self.step, "ema": winner == "ema_", "metrics": results[winner]}
        return winner


def fingerprint(session: Session) -> dict[str, Any]:
    """Return what a resumed run must share with the checkpoint beside the recipe: the data and their classes."""
    info = asdict(session.task.weights_info())
    del info["recipe_hash"]
    content = info | {"num_samples": len(cast(Sized, session.task.train_set)), "data": session.task.data_fingerprint()}
    if isinstance(session.task, HasSubset):
        content["subset"] = next(iter(session.task.subset_fingerprints()), session.earlier_subset)
    return _as_saved(content)


def capture(session: Session, state: RunState, metrics_bytes: int) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Return the content of a checkpoint.

    Args:
        session: the run.
        state: how far it is.
        metrics_bytes: size of ``metrics.jsonl``, to which it is truncated on resumption.

    Returns:
        The tensors by group and name, and the JSON beside them.
    """
    groups: dict[str, Tensors] = {
        "model": session.model.state_dict(),
        "optimizer": optimizer_tensors(session.model, session.optimizer),
    }
    if session.ema is not None:
        groups["ema"] = session.ema.module.state_dict()
    content = {
        "run": asdict(state),
        "optimizer": {
            "name": session.recipe.optim.name,
            "numbers": optimizer_numbers(session.model, session.optimizer),
        },
        "scaler": session.scaler.state_dict(),
        "metrics_bytes": metrics_bytes,
        "micro_batch_size": session.plan.micro_batch_size,
        "processes": session.world.size,
        "kernels": session.preparation.kernels,
        "kernel_layers": list(session.preparation.kernel_layers) if session.world.device.type == "cuda" else None,
        "fingerprint": fingerprint(session),
    }
    return groups, content


def restore(
    session: Session, checkpoint: Checkpoint | None, check: Callable[[Session, Checkpoint | None], dict[str, Any]] | None = None
) -> RunState:
    """Restore a session from a checkpoint that rank 0 has read and sends to the other ranks.

    Args:
        session: changed in place.
        checkpoint: what rank 0 has read; None on the other ranks.
        check: called on rank 0 first, returns the checkpoint's state; by default it refuses other data.

    Returns:
        The state of the run at the checkpoint.

    Raises:
        UserError: the run was started with other data.
    """
    world = session.world
    content = world.on_main(lambda: (check or _checked)(session, checkpoint))
    session.earlier_subset = content.get("fingerprint", {}).get("subset")
    keep_kernels(session, content.get("kernel_layers"))
    numbers = content.get("optimizer", {}).get("numbers", {})  # none before there were other optimizers than AdamW
    if checkpoint is not None:
        session.model.load_state_dict(checkpoint.tensors["model"])
        load_optimizer_state(session.model, session.optimizer, checkpoint.tensors["optimizer"], numbers)
        if session.ema is not None:
            session.ema.module.load_state_dict(checkpoint.tensors["ema"])
    own = optimizer_tensors(session.model, session.optimizer)
    kinds = world.broadcast({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in own.items()})
    if not world.is_main:
        zeros = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in kinds.items()}
        load_optimizer_state(session.model, session.optimizer, zeros, numbers)
    world.broadcast_tensors(_all_tensors(session))
    session.scaler.load_state_dict(content["scaler"])
    known = {key.name for key in fields(RunState)}
    return RunState(**{key: value for key, value in content["run"].items() if key in known})


def inexact_changes(session: Session, content: dict[str, Any]) -> list[str]:
    """Return a warning for each setting that keeps the resumed run from being bit-identical to an uninterrupted one.

    Args:
        session: the run that is resumed.
        content: the state of the checkpoint that it is resumed from.
    """
    changes = []
    before, now = content["micro_batch_size"], session.plan.micro_batch_size
    if before != now:
        changes.append(f"{now} images per forward pass, before it was {before}")
    processes = content.get("processes", session.world.size)  # checkpoints before 0.3 lack the key
    if before == now and processes != session.world.size:
        changes.append(f"{session.world.size} processes, which sum gradients in another order than {processes} did")
    names = {False: "eager operators", True: "custom kernels"}
    used, uses = content.get("kernels", False), session.preparation.kernels  # checkpoints from before the kernels lack the key
    if used != uses:
        changes.append(f"the model runs with {names[uses]}, before it was {names[used]}")
    elif content.get("kernel_layers") not in (None, list(session.preparation.kernel_layers)):
        changes.append("other layers run with custom kernels than before")
    return [f"Warning: {change}; results will not be bit-identical to an uninterrupted run." for change in changes]


def _checked(session: Session, checkpoint: Checkpoint | None) -> dict[str, Any]:
    assert checkpoint is not None
    # Checkpoints from before a field of the metadata was added were of its default.
    defaults = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for each in fields(session.task.weights_info())
        if each.default is not MISSING or each.default_factory is not MISSING
    }
    before, now = _as_saved(defaults) | checkpoint.state["fingerprint"], fingerprint(session)
    for key, value in now.items():
        if key == "subset":
            own = session.task.subset_fingerprints() if isinstance(session.task, HasSubset) else ()
            if own and before.get(key) not in (None, *own):
                raise UserError(
                    "eval.subset or eval.subset_dir names other classes or images than before, so that subset_top1 would be two "
                    "metrics in one run.\n"
                    "Resume with those it had, or with none (eval.subset=null eval.subset_dir=null), and measure others of the "
                    "result: stvit eval RUN eval.subset=LIST"
                )
        elif key == "data":
            # Last: the number of samples and the classes say more. Checkpoints of 0.1.0 have no such hash.
            if before.get(key, value) != value:
                raise UserError(
                    "The run was started with other data: files of the training set have other names than they had, lie in other "
                    "classes, or come in another order.\n"
                    "Give the folder it was started with (data.dir), or start another run."
                )
        elif key == "settings" and _same_settings(str(before.get(key)), str(value)):
            continue
        elif _same_spelling(before.get(key)) != _same_spelling(value):
            raise UserError(
                f"The run was started with other data: {key} was {_short(before.get(key))}, now it is {_short(value)}.\n"
                "Give the folder it was started with (data.dir), or start another run."
            )
    return checkpoint.state


def _as_saved(content: dict[str, Any]) -> dict[str, Any]:
    """Return values as a checkpoint has them: lists in place of tuples, at any depth."""
    return cast(dict[str, Any], json.loads(json.dumps(content)))


def _same_settings(before: str, now: str) -> bool:
    """Whether a task's settings agree in the keys that both have: a later version may have more, and the recipe was compared."""
    try:
        old, new = json.loads(before), json.loads(now)
    except ValueError:
        return False
    return isinstance(old, dict) and isinstance(new, dict) and all(new[key] == old[key] for key in old.keys() & new.keys())


def _same_spelling(value: Any) -> Any:
    """Return names as all their spellings in Unicode: a folder that was copied to another system may have another one."""
    if not isinstance(value, list):
        return value
    return [unicodedata.normalize("NFC", part) if isinstance(part, str) else part for part in value]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _all_tensors(session: Session) -> list[Tensor]:
    tensors = [*session.model.state_dict().values(), *optimizer_tensors(session.model, session.optimizer).values()]
    return tensors + (list(session.ema.module.state_dict().values()) if session.ema is not None else [])


def _rank(metrics: Mapping[str, float], main: str) -> tuple[float, float]:
    """Return what decides between two evaluations: the main metric and, where it is equal, the lower loss.

    Of twelve validation images a model soon predicts all; without the loss the first such weights would stay the best.
    """
    return metrics[main], -metrics.get("loss", 0.0)
