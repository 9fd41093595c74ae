"""What a run directory says of its run: score, time, speed, versions and machine. Imports no torch."""

from __future__ import annotations

import json
import math
import platform
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils import processor
from stvit_cli.utils.cpus import cpus

NO_METRICS = frozenset({"kind", "step", "epoch", "seconds", "num_images", "weights"})
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of tensors in a weights file that are no parameters."""


@dataclass(frozen=True)
class FinishedRun:
    """A run directory.

    Attributes:
        path: the directory.
        recipe: as saved in it, its missing keys filled in by their defaults.
    """

    path: Path
    recipe: Recipe

    @cached_property
    def _log(self) -> MetricsLog:
        return MetricsLog(RunDir(self.path).metrics)

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """The content of ``environment.json``."""
        return RunDir(self.path).read_environment()

    @cached_property
    def last(self) -> Mapping[str, Any]:
        """The last evaluation; empty: there was none."""
        return max(self._log.rows("eval"), key=lambda row: row["step"], default={})

    @cached_property
    def test(self) -> Mapping[str, Any]:
        """The evaluation on the test set; empty: there was none."""
        return max(self._log.rows("test"), key=lambda row: row["step"], default={})

    @property
    def progress(self) -> str:
        """How far the run is: ``epoch 3 of 14``."""
        schedule = self.recipe.schedule
        rows = [*self._log.rows("train"), self.last or {"step": 0, "epoch": 0.0}]
        if schedule.steps is not None:
            return f"step {max(row['step'] for row in rows)} of {schedule.steps}"
        return f"epoch {max(row['epoch'] for row in rows):.3g} of {schedule.epochs}"

    def is_finished(self, score: str) -> bool:
        """Whether the run has what it is judged by: ``test`` or ``last``, see `experiments`."""
        schedule = self.recipe.schedule
        if score == "test":
            return bool(self.test)
        if schedule.steps is not None:
            return bool(self.last) and self.last["step"] >= schedule.steps
        return bool(self.last) and self.last["epoch"] >= schedule.epochs

    def scores(self, score: str) -> dict[str, float]:
        """Return the metrics of the evaluation that counts; of the last one those of the moving average where it is kept.

        Which weights count is decided by the recipe, before the run, and never by their metrics.
        """
        row = self.test if score == "test" else self.last
        values = {name: value for name, value in row.items() if name not in NO_METRICS and isinstance(value, int | float)}
        averaged = {name.removeprefix("ema_"): value for name, value in values.items() if name.startswith("ema_")}
        if score == "last" and self.recipe.train.ema_decay is not None:
            values |= averaged
        return {name: value for name, value in values.items() if not name.startswith("ema_") and "/" not in name}

    def weights(self, score: str) -> str:
        """Return whose metrics these are, in words."""
        if score == "test":
            return str(self.test.get("weights", "best"))
        return "last, moving average" if self.recipe.train.ema_decay is not None else "last"

    @cached_property
    def minutes(self) -> float:
        """Time of training and evaluations, from the logged rows: pauses of a run that was resumed do not count."""
        seconds = sum(float(row.get("seconds") or 0.0) for kind in ("eval", "test") for row in self._log.rows(kind))
        step = 0
        for row in self._log.rows("train"):
            if speed := row.get("images_per_second"):
                seconds += (row["step"] - step) * self.recipe.train.global_batch_size / speed
            step = row["step"]
        return seconds / 60

    @cached_property
    def images_per_second(self) -> float:
        """Median speed of training over the logged rows; NaN: there are none."""
        speeds = [row["images_per_second"] for row in self._log.rows("train") if row.get("images_per_second")]
        return median(speeds) if speeds else math.nan

    @cached_property
    def params(self) -> int | None:
        """Number of parameters, from the header of the last weights; None: there are no weights."""
        path = RunDir(self.path).last
        if not path.is_file():
            return None
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        tensors = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
        return sum(math.prod(shape) for name, shape in tensors.items() if not name.endswith(BUFFERS))

    @property
    def machine(self) -> str:
        """Processor and number of CPUs; where the run did not record the processor, this machine's if it is the same one."""
        own = self.environment
        if own.get("device", "cpu") != "cpu":
            return str(own["device"])
        name = own.get("processor")
        cores = own.get("cores")
        if name is None and (own.get("platform"), cores) == (platform.platform(), cpus().total):
            name = processor.description()
        return f"{name or 'processor not recorded'}, {cores or 'unknown number of'} cores"

    def provenance(self) -> dict[str, Any]:
        """Return what belongs to every figure: recipe hash, version, machine, threads, date, minutes, speed, parameters."""
        own = self.environment
        versions = own.get("versions")
        known = versions if isinstance(versions, dict) else {}
        speed = self.images_per_second
        return {
            "recipe_hash": recipe_io.recipe_hash(self.recipe),
            "version": known.get("stvit"),
            "torch": known.get("torch"),
            "machine": self.machine,
            "threads": own.get("threads"),
            "date": str(own.get("started", ""))[:10] or None,
            "minutes": round(self.minutes, 1),
            "images_per_second": None if math.isnan(speed) else round(speed, 1),
            "params": self.params,
        }


def find_runs(folder: Path) -> Iterator[FinishedRun]:
    """Yield the runs in a folder and its subfolders, in the order of their paths; what is no readable run is passed over."""
    for path in sorted(folder.rglob("recipe.yaml")):
        run_dir = RunDir(path.parent)
        if run_dir.metrics.is_file() and run_dir.environment.is_file():
            yield FinishedRun(path.parent, recipe_io.load(path))
