"""The run directory: what is in it, how a run begins in it and how it is taken up again. Imports no torch at module level.

``recipe.yaml`` (resolved), ``environment.json``, ``metrics.jsonl``, ``checkpoints/``, ``best.safetensors``, ``last.safetensors``
(with ``last_ema.safetensors`` where there is a moving average), ``curves.png``, ``events/`` (TensorBoard, on request); and
``.lock`` while the run goes on.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path

from stvit_cli.engine.run_lock import LOCK, RunLock
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils.files import replace_file, require_writable_folder, writing
from stvit_cli.utils.text import shell_command

RECIPE = "recipe.yaml"
# Written before recipe.yaml: alone they are the remains of a run that was killed before it had begun.
BEFORE_RECIPE = frozenset({"checkpoints", "environment.json", LOCK})
FIRST_CHECKPOINT = frozenset({"step_00000000", ".step_00000000.writing"})
VERSIONS_OF = ("stvit", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")


class RunDir:
    """The places in a run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / RECIPE
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.last_ema = path / "last_ema.safetensors"
        self.curves = path / "curves.png"
        self.events = path / "events"

    def clear(self) -> RunLock:
        """Make the directory, empty, and lock it. Raises UserError as ``require_free`` does, or where another run is in it."""
        if not self.path.is_dir():
            require_free(self.path)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lock = RunLock.acquire(self.path)
        try:
            require_free(self.path)
            with writing(self.path):
                shutil.rmtree(self.checkpoints, ignore_errors=True)
                self.checkpoints.mkdir()
        except BaseException:
            lock.release()
            raise
        return lock

    def begin(
        self, recipe: Recipe, device: str, world_size: int, kernels: bool, started_from: dict[str, object] | None = None
    ) -> None:
        """Write what says that a run is here. The recipe comes last: with it the run can be resumed, before it never began."""
        with writing(self.path):
            content = environment(device, world_size, kernels)
            if started_from is not None:
                content["started_from"] = started_from
            replace_file(self.path / "environment.json", json.dumps(content, indent=2).encode() + b"\n")
            # What is relative to the present folder would name another data set elsewhere.
            replace_file(self.recipe, recipe_io.dump(recipe_io.with_absolute_paths(recipe)).encode())

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
            last = "Change it back, or start a new run from one of its checkpoints: add --from-step N."
            raise UserError("\n".join([first, *shown, last]))


def require_free(path: Path) -> None:
    """Raise UserError where a new run cannot begin in ``path``: a file, a directory that holds something or cannot be written."""
    if os.path.exists(path) and not path.is_dir():  # noqa: PTH110  # Path.exists raises for a name that is too long
        raise UserError(f"{path} is a file; expected a directory for the run, new or empty.")
    names, saved = _names(path), _names(path / "checkpoints")
    if not (names <= BEFORE_RECIPE and saved <= FIRST_CHECKPOINT):
        hint = f" To go on with the run in it: {shell_command('--resume', path)}" if RECIPE in names else ""
        raise UserError(f"{path} is not empty; expected a new or empty directory for the run.{hint}")
    require_writable_folder(path)


def make_new(path: Path) -> Path:
    """Make an empty directory ``path``, or with -2, -3, ... at its end where that is taken, and return it. Raises UserError."""
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


def _names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()} if os.path.isdir(path) else set()  # noqa: PTH112


def environment(device: str, world_size: int, kernels: bool) -> dict[str, object]:
    """Return what a person needs to run this again: versions, machine, command, time."""
    versions = {}
    for name in VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "device": device,
        "processes": world_size,
        "kernels": kernels,
        "versions": versions,
    }
