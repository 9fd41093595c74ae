"""What a finished run achieved and what that took, read from its directory."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeGuard

from stvit_cli.analysis.report.run_files import MAIN_METRICS, NO_METRICS, Run, read_run
from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils.safetensors_header import num_parameters


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        path: its directory.
        model: its name.
        seed: of the run.
        metric: name of the main metric: top1, map, box_ap or miou.
        score: its value, in percent.
        split: ``test``, where the run evaluates a test split at its end, otherwise ``validation``: that is of the last
            evaluation, and no epoch is chosen.
        weights: ``ema`` where the score is that of the moving average of the weights.
        metrics: all metrics of that evaluation by name.
        params: number of parameters; None where that is not known.
        steps: of the optimizer.
        epochs: over the training images.
        seconds: of training and evaluation.
        images_per_second: trained on, on average over the run, data loading included, evaluation not.
        recipe_hash: of the run's own recipe, with its seed.
        version: of stvit.
        machine: processor and threads, or device.
        command: words of the command that started the run.
    """

    path: Path
    model: str
    seed: int
    metric: str
    score: float
    split: Literal["test", "validation"]
    weights: Literal["model", "ema"]
    metrics: Mapping[str, float]
    params: int | None
    steps: int
    epochs: float
    seconds: float
    images_per_second: float | None
    recipe_hash: str
    version: str
    machine: str
    command: tuple[str, ...]

    @property
    def minutes(self) -> float:
        """Training and evaluation, in minutes."""
        return self.seconds / 60

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them, without the directory and the command, which name this machine's folders."""
        return {key: value for key, value in asdict(self).items() if key not in ("path", "command")}


def read_result(path: Path) -> RunResult | None:
    """Read what a run achieved.

    Args:
        path: the run directory.

    Returns:
        None where no run is there, or one that is not finished.
    """
    if not RunDir(path).recipe.is_file():
        return None
    try:
        run = read_run(path)
    except UserError:
        return None
    tests = MetricsLog(RunDir(path).metrics).rows("test")
    if not _is_finished(run, has_test=bool(tests)):
        return None
    row = tests[-1] if tests else run.evals[-1]
    metric, weights = _main_metric(row)
    if metric is None:
        return None
    prefix = "ema_" if weights == "ema" and f"ema_{metric}" in row else ""
    seconds, rate = _duration(run)
    return RunResult(
        path=path,
        model=run.recipe.model.name,
        seed=run.recipe.train.seed,
        metric=metric,
        score=float(row[prefix + metric]),
        split="test" if tests else "validation",
        weights=weights,
        metrics=_metrics(row, prefix),
        params=_num_parameters(run),
        steps=run.step,
        epochs=run.epoch,
        seconds=seconds + sum(float(each.get("seconds") or 0) for each in [*run.evals, *tests]),
        images_per_second=rate,
        recipe_hash=recipe_io.recipe_hash(run.recipe),
        version=str(run.environment.get("versions", {}).get("stvit", "unknown")),
        machine=_machine(run.environment),
        command=tuple(map(str, run.environment.get("command", ()))),
    )


def _is_finished(run: Run, *, has_test: bool) -> bool:
    """Whether a run has its last evaluation, and that of the test split where its recipe has one."""
    if not run.evals or not run.is_complete or run.evals[-1]["step"] < run.step:
        return False
    return has_test or getattr(run.recipe.data, "test_split", None) is None


def _main_metric(row: Mapping[str, Any]) -> tuple[str | None, Literal["model", "ema"]]:
    """Return the main metric of an evaluation, and whose it is: the moving average's where there is one."""
    for metric in MAIN_METRICS:
        if _is_number(row.get(f"ema_{metric}")):
            return metric, "ema"
        if _is_number(row.get(metric)):
            return metric, "ema" if row.get("weights") == "ema" else "model"
    return None, "model"


def _metrics(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the metrics of an evaluation that are those of the weights, or with a prefix those of their moving average."""
    named = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix) and _is_number(value)}
    return {
        name: float(value)
        for name, value in named.items()
        if name not in {*NO_METRICS, "weights_step"} and not name.startswith("ema_")
    }


def _duration(run: Run) -> tuple[float, float | None]:
    """Return the seconds of training steps and the images per second, by the logged steps; ``train.log_every_steps`` apart."""
    batch, seconds, steps = run.recipe.train.global_batch_size, 0.0, 0
    for before, row in pairwise([{"step": 0}, *run.train]):
        window, rate = int(row["step"]) - int(before["step"]), row.get("images_per_second")
        if window > 0 and _is_number(rate) and rate > 0:
            seconds, steps = seconds + window * batch / rate, steps + window
    return seconds, steps * batch / seconds if seconds else None


def _num_parameters(run: Run) -> int | None:
    """Return the number of parameters: as the run wrote it down, otherwise of its weights file."""
    written = run.environment.get("parameters")
    if isinstance(written, int):
        return written
    try:
        return num_parameters(RunDir(run.path).last)
    except (OSError, ValueError):
        return None


def _machine(environment: Mapping[str, Any]) -> str:
    device, threads = str(environment.get("device", "cpu")), environment.get("threads")
    if device != "cpu":
        return str(environment.get("gpu") or device)
    name = environment.get("processor") or str(environment.get("platform", platform.platform()))
    return f"{name}, {threads} thread{'s' * (threads != 1)}" if threads else str(name)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
