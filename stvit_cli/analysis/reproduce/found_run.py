"""A run directory that may be of an experiment: its recipe, how far it is, and what belongs to each of its figures."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stvit_cli.analysis.ablation.results import RunResult, read_result
from stvit_cli.analysis.report.run_files import Run, read_run
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils import processor
from stvit_cli.utils.cpus import cpus


@dataclass(frozen=True)
class FoundRun:
    """A run directory.

    Attributes:
        path: the directory.
        recipe: as saved in it, its missing keys filled in by their defaults.
    """

    path: Path
    recipe: Recipe

    @cached_property
    def _result(self) -> RunResult | None:
        return read_result(self.path)

    @cached_property
    def _environment(self) -> Mapping[str, Any]:
        return RunDir(self.path).read_environment()

    @cached_property
    def _run(self) -> Run:
        return read_run(self.path)

    @property
    def problems(self) -> list[str]:
        """What of its files cannot be read, as sentences."""
        return self._run.problems

    @property
    def has_provenance(self) -> bool:
        """Whether it is known what belongs to its figures: version, machine, threads, date."""
        return bool(self._environment)

    @property
    def progress(self) -> str:
        """How far the run is: ``epoch 3 of 14``."""
        run, schedule = self._run, self.recipe.schedule
        if schedule.steps is not None:
            return f"step {run.step} of {schedule.steps}"
        return f"epoch {run.epoch:.3g} of {schedule.epochs}"

    def result(self, score: str) -> RunResult | None:
        """Return what the run achieved; None until it has what it is judged by: ``test`` or ``last``, see `experiments`."""
        found = self._result
        return found if found is not None and (found.split == "test") == (score == "test") else None

    @property
    def machine(self) -> str:
        """Processor and number of cores; where the run did not record the processor, this machine's if it is the same one."""
        own = self._environment
        if own.get("device", "cpu") != "cpu":
            return str(own.get("gpu") or own["device"])
        name, cores = own.get("processor"), own.get("cores")
        if name is None and (own.get("platform"), cores) == (platform.platform(), cpus().total):
            name = processor.description()
        return f"{name or 'processor not recorded'}, {cores or 'unknown number of'} cores"

    def provenance(self, result: RunResult) -> dict[str, Any]:
        """Return what belongs to every figure: recipe hash, versions, machine, threads, date, minutes, speed, parameters."""
        own = self._environment
        versions = own.get("versions")
        speed = result.images_per_second
        return {
            "recipe_hash": result.recipe_hash,
            "version": result.version,
            "torch": versions.get("torch") if isinstance(versions, dict) else None,
            "machine": self.machine,
            "threads": own.get("threads"),
            "date": str(own.get("started", ""))[:10] or None,
            "epochs": round(result.epochs, 2),
            "minutes": round(result.minutes, 1),
            "images_per_second": None if speed is None else round(speed, 1),
            "params": result.params,
        }


def find_runs(folder: Path) -> Iterator[FoundRun]:
    """Yield the runs in a folder and its subfolders, in the order of their paths; folders without metrics are skipped."""
    for path in sorted(folder.rglob("recipe.yaml")):
        run_dir = RunDir(path.parent)
        if run_dir.metrics.is_file() and run_dir.environment.is_file():
            yield FoundRun(path.parent, recipe_io.load(path))
