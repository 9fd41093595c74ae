"""The run directory: its files, and the checks before a run starts or resumes in it. Imports no torch at module level.

``recipe.yaml`` (resolved), ``environment.json``, ``metrics.jsonl`` and the same as ``metrics.csv``, ``checkpoints/``,
``best.safetensors`` with what it predicts for the validation images (``predictions.parquet`` or ``.csv``, and
``evaluation.json``) and, where the recipe names a test set, for its images (the same names with ``-test``),
``last.safetensors`` (with ``last_ema.safetensors`` where there is a moving average), ``curves.png``;
on request ``events/`` (TensorBoard) and ``loggers.json`` (the runs of other trackers); and ``.lock`` while the run is active.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from stvit_cli import __version__
from stvit_cli.engine.run_lock import LOCK, RunLock
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils import processor, strict_json
from stvit_cli.utils.cpus import cpus, num_threads
from stvit_cli.utils.files import LEFTOVER, remove_leftovers, replace_file, require_writable_folder, writing
from stvit_cli.utils.text import shell_command

RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
# Written before recipe.yaml: a directory that holds nothing else is what a run leaves that was killed while it started.
BEFORE_RECIPE = frozenset({"checkpoints", ENVIRONMENT, LOCK})
VERSIONS_OF = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors")


Subset = Literal["val", "test"]
"""The images that the best weights are evaluated on."""


class EvaluationFiles(NamedTuple):
    """The files of an evaluation that a run keeps: what was found, and the table of predictions in either of its formats."""

    evaluation: Path
    parquet: Path
    csv: Path


class RunDir:
    """The paths in a run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / RECIPE
        self.checkpoints = path / "checkpoints"
        self.environment = path / ENVIRONMENT
        self.metrics = path / METRICS
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.last_ema = path / "last_ema.safetensors"
        self.curves = path / "curves.png"
        self.evaluation = self.evaluation_files("val").evaluation
        self.events = path / "events"
        self.loggers = path / "loggers.json"

    @property
    def predictions(self) -> Path | None:
        """The table of the best weights' predictions, in either of its formats; None: there is none."""
        return next((path for path in self.prediction_files if path.is_file()), None)

    @property
    def prediction_files(self) -> tuple[Path, Path]:
        """Where that table can be: as Parquet and as CSV."""
        files = self.evaluation_files("val")
        return files.parquet, files.csv

    def evaluation_files(self, of: Subset) -> EvaluationFiles:
        """Return the files of the best weights' evaluation on the validation or the test images."""
        end = "" if of == "val" else f"-{of}"
        names = (f"evaluation{end}.json", f"predictions{end}.parquet", f"predictions{end}.csv")
        return EvaluationFiles(*(self.path / name for name in names))

    def clear(self) -> RunLock:
        """Create the directory, empty it and lock it. Raises UserError as ``require_free`` does, or if another run is in it."""
        if not self.path.is_dir():
            require_free(self.path)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lock = RunLock.acquire(self.path)
        try:
            require_free(self.path)
            with writing(self.path):
                remove_leftovers(self.path)
                self.metrics.unlink(missing_ok=True)
                self.environment.unlink(missing_ok=True)
                shutil.rmtree(self.checkpoints, ignore_errors=True)
                self.checkpoints.mkdir()
        except BaseException:
            lock.release()
            raise
        return lock

    def write_environment(self, device: str, world_size: int, kernels: bool, details: Mapping[str, object]) -> None:
        """Write ``environment.json``, before the recipe.

        Args:
            device: where the run trains.
            world_size: number of processes.
            kernels: whether custom kernels run parts of the model.
            details: ``parameters`` (their number), ``gpu`` (its name, or None), and where the run starts from a checkpoint of
                another one ``started_from``, with ``run`` and ``step``.

        Raises:
            WriteError: it cannot be written.
        """
        content = environment(device, world_size, kernels) | dict(details)
        with writing(self.environment):
            replace_file(self.environment, json.dumps(content, indent=2).encode() + b"\n")

    def read_environment(self) -> dict[str, object]:
        """Return ``environment.json``; empty where it cannot be read."""
        return strict_json.read_object(self.environment)

    def write_recipe(self, recipe: Recipe) -> None:
        """Write ``recipe.yaml``, after everything that a resumption needs: a directory with it holds a run.

        Raises:
            WriteError: it cannot be written.
        """
        with writing(self.recipe):
            # A path relative to the current folder would name another data set elsewhere.
            replace_file(self.recipe, recipe_io.dump(recipe_io.with_absolute_paths(recipe)).encode())

    def remove_leftovers(self) -> None:
        """Remove unfinished files that killed processes have left. Raises WriteError if that fails."""
        with writing(self.path):
            remove_leftovers(self.path)
            remove_leftovers(self.checkpoints)

    def require_run(self) -> None:
        """Raises UserError where no run is here."""
        if not self.recipe.is_file():
            found = "there is no such directory" if not self.path.is_dir() else f"it holds no {RECIPE}"
            raise UserError(f"{self.path} is not the directory of a run: {found}.")

    def check_resumable(self, recipe: Recipe) -> None:
        """Raises UserError where no run is here, or one with another recipe."""
        self.require_run()
        changes = recipe_io.difference(recipe_io.load(self.recipe), recipe)
        if changes:
            more = [f"  and {len(changes) - 3} more"] if len(changes) > 3 else []
            shown = [f"  {change}" for change in changes[:3]] + more
            first = f"{self.path} was started with another recipe, and a resumed run must keep it. Changed:"
            last = "Change it back, or start a new run from one of its checkpoints: add from_step=N."
            raise UserError("\n".join([first, *shown, last]))


def require_free(path: Path) -> None:
    """Raise UserError where a new run cannot begin in ``path``: a file, a directory that holds something or cannot be written."""
    if os.path.exists(path) and not path.is_dir():  # noqa: PTH110  # Path.exists raises for a name that is too long
        raise UserError(f"{path} is a file; expected a directory for the run, new or empty.")
    names = _names(path)
    if not _is_unstarted(path, names):
        hint = f" To resume the run in it: {shell_command('stvit', 'train', '--resume', path)}" if RECIPE in names else ""
        raise UserError(f"{path} is not empty; expected a new or empty directory for the run.{hint}")
    require_writable_folder(path)


def make_new(path: Path) -> Path:
    """Create and return the directory ``path``, or ``path-2``, ``path-3``, ... if that exists. Raises UserError."""
    number, candidate = 1, path
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                candidate.mkdir()
            except FileExistsError:
                number, candidate = number + 1, path.with_name(f"{path.name}-{number + 1}")
            else:
                return candidate


def _is_unstarted(path: Path, names: set[str]) -> bool:
    """Whether a directory with these names is empty, or holds only what runs leave that were killed while they started."""
    step = _started_from_step(path / ENVIRONMENT)
    may_exist = BEFORE_RECIPE if step is None else BEFORE_RECIPE | {METRICS}
    return names <= may_exist and _names(path / "checkpoints") <= {f"step_{step or 0:08d}"}


def _started_from_step(path: Path) -> int | None:
    """Return the step of another run's checkpoint that a run started from, as its ``environment.json`` says; otherwise None."""
    try:
        return int(json.loads(path.read_bytes())["started_from"]["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _names(path: Path) -> set[str]:
    """Return the names in a directory, without the leftovers of atomic writes."""
    entries = path.iterdir() if os.path.isdir(path) else ()  # noqa: PTH112  # Path.is_dir raises for a name that is too long
    return {entry.name for entry in entries if not LEFTOVER.fullmatch(entry.name)}


def environment(device: str, world_size: int, kernels: bool) -> dict[str, object]:
    """Return what is needed to reproduce a run: versions, machine, command, time."""
    versions = {"stvit": __version__}
    for name in VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    machine = cpus()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor.description(),
        "cores": machine.total,
        "usable_cpus": machine.usable,
        "cpu_quota": machine.quota,
        "threads": num_threads(),
        "device": device,
        "processes": world_size,
        "kernels": kernels,
        "versions": versions,
    }
