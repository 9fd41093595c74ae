"""A new run that starts from a checkpoint of another one, with other settings, such as after it has diverged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvit_cli.engine import checkpoint
from stvit_cli.engine.checkpoint import Checkpoint
from stvit_cli.engine.damage import ADAMW, DamagedError, check_alone, differing_tensors
from stvit_cli.engine.optim import GROUP
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.engine.session import Session
from stvit_cli.engine.state import fingerprint
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.utils.files import replace_file, writing
from stvit_cli.utils.text import first_few, shell_command

# Of the fingerprint, what a branch may not change: the classes are those of the weights.
_KEPT = ("task", "model", "class_names")


@dataclass(frozen=True)
class Branch:
    """The checkpoint of ``run_dir`` after ``step`` steps."""

    run_dir: Path
    step: int

    def require(self) -> None:
        """Raise UserError where there is no such checkpoint, with those that there are."""
        paths = RunDir(self.run_dir)
        paths.require_run()
        if self.path not in checkpoint.checkpoints(paths.checkpoints):
            steps = [str(step) for step in saved_steps(self.run_dir)]
            there = f"it has those of step {first_few(steps, 12)}" if steps else "it has none"
            raise UserError(f"{self.run_dir} holds no checkpoint of step {self.step}; {there}.")

    @property
    def path(self) -> Path:
        return RunDir(self.run_dir).checkpoints / f"step_{self.step:08d}"

    def read(self) -> Checkpoint:
        """Read the checkpoint. Raises UserError where it is not there or damaged."""
        self.require()
        try:
            tensors, content = checkpoint.read(self.path)
            check_alone(content["step"], tensors, content["state"])
        except DamagedError as error:
            raise UserError(f"{self.path} is damaged: {error}.\nStart from another one: from_step=N") from error
        return Checkpoint(self.path, content["step"], tensors, content["state"])

    def copy_metrics(self, target: Path, num_bytes: int, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        """Write to ``target`` those rows of the metrics that were there at the checkpoint and that ``is_kept`` accepts."""
        source = RunDir(self.run_dir).metrics
        lines = source.read_bytes()[:num_bytes].splitlines(keepends=True) if source.is_file() else []
        with writing(target):
            replace_file(target, b"".join(line for line in lines if is_kept(json.loads(line))))


def saved_steps(run_dir: Path) -> list[int]:
    """Return the steps after which a run was saved, in their order."""
    return [int(path.name.removeprefix("step_")) for path in checkpoint.checkpoints(RunDir(run_dir).checkpoints)]


def restart_advice(recipe: Recipe, run_dir: Path | None, last_step: int) -> list[str]:
    """Return two or three lines on how to restart a diverged run from a checkpoint; an empty list if it has none.

    Args:
        recipe: of the run that has diverged.
        run_dir: its directory; None where nothing is saved.
        last_step: checkpoints of later steps are not to be used.
    """
    steps = [] if run_dir is None else [step for step in saved_steps(run_dir) if step <= last_step]
    if run_dir is None or not steps:
        return []
    command = shell_command("stvit", "train", "--resume", run_dir, "--from-step", str(steps[-1]), *stabilizing_overrides(recipe))
    lines = ["Where the images are sound, start a new run from a checkpoint, with settings such as:", f"  {command}"]
    if len(steps) > 1:
        earlier = first_few([str(step) for step in steps[-2::-1]])
        lines.append(f"Earlier checkpoints, where that one is too late: of step {earlier}")
    return lines


def stabilizing_overrides(recipe: Recipe) -> list[str]:
    """Return overrides that make a run less likely to diverge."""
    schedule, peak = recipe.schedule, recipe.peak_lr / 2
    overrides = [f"optim.lr={recipe.optim.lr / 2:g}"]
    overrides += [f"schedule.{key}=0" for key in ("min_lr", "warmup_lr") if getattr(schedule, key) > peak]
    if recipe.optim.clip_grad_norm is None or recipe.optim.clip_grad_norm > 1:
        overrides.append("optim.clip_grad_norm=1")
    return [*overrides, "train.precision=bf16"] if recipe.train.precision == "fp16" else overrides


def optimizer_name(state: dict[str, Any]) -> str:
    """Return the optimizer of the run that wrote a checkpoint's state."""
    return str(state.get("optimizer", {}).get("name", ADAMW))


def adapted(session: Session, source: Checkpoint | None) -> dict[str, Any]:
    """Make a checkpoint's content fit a session with other settings, in place, and return its state.

    What is best is found again: the evaluation may be another one too.

    Raises:
        UserError: the model or its classes are other ones, or the new run has no steps left.
    """
    assert source is not None
    before, now = source.state["fingerprint"], fingerprint(session)
    changed = [key for key in _KEPT if key in before and key in now and before[key] != now[key]]
    differing = differing_tensors(source.tensors["model"], session.model.state_dict())
    if changed or differing:
        what = f"{changed[0]} is another one" if changed else f"{len(differing)} tensors differ, such as {next(iter(differing))}"
        raise UserError(
            f"{source.path} does not fit the changed recipe: {what}.\n"
            "Keep the model and its classes; or start a run from weights alone: weights=FILE."
        )
    if source.step >= session.timeline.num_steps:
        raise UserError(
            f"The run would end after step {session.timeline.num_steps}, so nothing is left to train from step {source.step}.\n"
            "Choose an earlier step, or a longer schedule."
        )
    trained = {name for name, parameter in session.model.named_parameters() if parameter.requires_grad}
    optimizer, numbers = source.tensors["optimizer"], source.state.get("optimizer", {}).get("numbers", {})
    is_same = optimizer_name(source.state) == session.recipe.optim.name
    kept = {name for name in [*optimizer, *numbers] if is_same and (name.startswith(GROUP) or name.rpartition("/")[0] in trained)}
    source.tensors["optimizer"] = {name: value for name, value in optimizer.items() if name in kept}
    source.tensors.setdefault("ema", source.tensors["model"])
    run = source.state["run"] | {"best": {}, "stale": 0, "evaluated": -1}
    scaler = source.state["scaler"] or session.scaler.state_dict()  # empty where it ran in another precision
    adopted = {"numbers": {name: value for name, value in numbers.items() if name in kept}}
    return source.state | {"run": run, "scaler": scaler, "optimizer": source.state.get("optimizer", {}) | adopted}
