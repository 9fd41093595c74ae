"""A run as its directory has it: recipe, environment, metrics, how far it came, and which files are missing or damaged."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stvit_cli.engine.run_dir import RunDir
from stvit_cli.engine.schedule import length
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io

MAIN_METRICS = ("top1", "map", "box_ap", "miou")
"""Of the tasks; the first that an evaluation has decided which weights are best."""

NO_METRICS = frozenset({"kind", "step", "epoch", "seconds", "num_images", "subset_num_images"})
"""What a row of an evaluation has beside metrics."""


@dataclass(frozen=True)
class Best:
    """The evaluation that found the best weights.

    Attributes:
        row: of the metrics.
        prefix: ``ema_`` where the moving average was the best, otherwise empty.
        metric: the main metric.
    """

    row: dict[str, Any]
    prefix: str
    metric: str

    @property
    def value(self) -> float:
        """The main metric of the best weights."""
        return float(self.row[self.prefix + self.metric])


@dataclass(frozen=True)
class Run:
    """A run, read from its directory.

    Attributes:
        path: the directory.
        recipe: of the run.
        environment: what ``environment.json`` says; empty where it cannot be read.
        train: rows of training steps.
        evals: rows of evaluations.
        problems: a line on each file that is missing or damaged.
        test: the row of the test set; None where the best weights were not evaluated on one.
    """

    path: Path
    recipe: Recipe
    environment: dict[str, Any]
    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)
    test: dict[str, Any] | None = None

    @cached_property
    def best(self) -> Best | None:
        """The evaluation of the best weights; None where there is none. As the engine: higher metric, then lower loss, first."""
        found: list[tuple[float, float, int, Best]] = []
        for position, row in enumerate(self.evals):
            for prefix in ("", "ema_"):
                metric = next((name for name in MAIN_METRICS if _is_number(row.get(prefix + name))), None)
                if metric is not None:
                    loss: Any = row.get(f"{prefix}loss")
                    rank = (float(row[prefix + metric]), -float(loss) if _is_number(loss) else 0.0, -position)
                    found.append((*rank, Best(row, prefix, metric)))
        return max(found, key=lambda item: item[:3])[3] if found else None

    @property
    def step(self) -> int:
        """The last step that the metrics have."""
        return max((int(row["step"]) for row in [*self.train[-1:], *self.evals[-1:]]), default=0)

    @property
    def epoch(self) -> float:
        """The same in epochs."""
        return max((float(row["epoch"]) for row in [*self.train[-1:], *self.evals[-1:]]), default=0.0)

    @cached_property
    def steps_per_epoch(self) -> int | None:
        """Steps of an epoch, as the metrics say; None where they do not."""
        rows = [row for row in [*self.train[-1:], *self.evals[-1:]] if row["epoch"]]
        return max(1, round(rows[0]["step"] / rows[0]["epoch"])) if rows else None

    @property
    def num_steps(self) -> int | None:
        """Steps of the entire run; None where that is not known."""
        return length(self.recipe.schedule, self.steps_per_epoch) if self.steps_per_epoch else self.recipe.schedule.steps

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its end, or was stopped early by its recipe."""
        if self.num_steps is None:
            return False
        return self.step >= self.num_steps or self._is_stopped_early

    @cached_property
    def _is_stopped_early(self) -> bool:
        patience = self.recipe.schedule.patience
        if patience is None or self.best is None:
            return False
        return len(self.evals) - 1 - self.evals.index(self.best.row) >= patience

    @property
    def num_images(self) -> int | None:
        """Number of validation images; None where there was no evaluation."""
        return int(self.evals[-1]["num_images"]) if self.evals and "num_images" in self.evals[-1] else None


def read_run(path: Path) -> Run:
    """Read the directory of a run.

    Args:
        path: the directory.

    Raises:
        UserError: it is not the directory of a run, or its recipe cannot be read.
    """
    files = RunDir(path)
    files.require_run()
    problems: list[str] = []
    recipe = recipe_io.load(files.recipe)
    rows = _rows(files.metrics, problems)
    environment = _environment(files.environment, problems)
    train = [row for row in rows if row["kind"] == "train"]
    evals, tests = ([row for row in rows if row["kind"] == kind] for kind in ("eval", "test"))
    return Run(path, recipe, environment, train, evals, problems, tests[-1] if tests else None)


def _environment(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {_reason(error)}.")
        return {}
    return content if isinstance(content, dict) else {}


def _rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Return the rows that can be read: a killed run may have left half a line, a version 0.1 NaN."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {_reason(error)}; there are no curves.")
        return []
    rows, damaged = [], 0
    for line in lines:
        try:
            row = json.loads(line)
            is_row = {"kind", "step", "epoch"} <= row.keys() and _is_number(row["step"]) and _is_number(row["epoch"])
        except (ValueError, AttributeError):
            is_row = False
        if is_row:
            rows.append({name: None if _is_undefined(name, value) else value for name, value in row.items()})
        else:
            damaged += 1
    if damaged:
        problems.append(f"{path.name}: {damaged} of {len(lines)} lines cannot be read and are left out.")
    return rows


def _is_undefined(name: str, value: object) -> bool:
    """Whether a metric is COCO's -1: there is no object of that size."""
    return value == -1 and name.removeprefix("ema_").startswith(("box_", "mask_"))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
