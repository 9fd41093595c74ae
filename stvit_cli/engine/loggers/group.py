"""The loggers of a run: checked before it starts, opened with it, and cut off where one fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stvit_cli.engine.loggers.base import LoggedImage, LoggedRun, Logger, Status
from stvit_cli.engine.seeding import kept_generators
from stvit_cli.errors import UserError
from stvit_cli.utils import strict_json
from stvit_cli.utils.environment import is_installed
from stvit_cli.utils.files import replace_file
from stvit_cli.utils.text import first_line

logger = logging.getLogger(__name__)


class _Kind(NamedTuple):
    """A kind of logger: its class, in the module of its name, and what it is called."""

    class_name: str
    title: str


KINDS = {
    "tensorboard": _Kind("TensorBoardLogger", "TensorBoard"),
    "wandb": _Kind("WandbLogger", "Weights & Biases"),
    "mlflow": _Kind("MlflowLogger", "MLflow"),
    "trackio": _Kind("TrackioLogger", "trackio"),
}
"""By the names of ``train.loggers``, which are the packages' and the extras' too."""


def require_installed(names: Sequence[str]) -> None:
    """Raise UserError where the package of a logger is not installed, with the command that installs it."""
    for name in names:
        if not is_installed(name):
            raise UserError(f"train.loggers={name} needs the package {name}: pip install 'stvit[{name}]'")


class Loggers:
    """The loggers of a run. A logger that raises is closed with a warning; the others, and the run, go on.

    Args:
        names: those of ``train.loggers``, each once.
        memory: the file that remembers the trackers' runs and what they have been told, for a resumed run.
        device: whose random generator is kept, as those of Python, NumPy and PyTorch are.
    """

    def __init__(self, names: Sequence[str], memory: Path, device: torch.device) -> None:
        self.names, self._memory, self._device = tuple(names), memory, device
        self._open: dict[str, Logger] = {}
        self._skip: dict[str, Mapping[str, int]] = {}
        self._warn: Callable[[str], None] = logger.warning

    def connect(self) -> None:
        """Find out whether the trackers can be reached, before a new run writes anything. Raises UserError."""
        for name in self.names:
            with kept_generators(self._device):
                _module(name).connect()

    def open(self, run: LoggedRun, recorded: Mapping[str, int], say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Start logging.

        Args:
            run: the run.
            recorded: by kind of row, the last step that the run had recorded before it was interrupted.
            say: prints where to look.
            warn: prints a warning.
        """
        self._warn = warn
        saved = strict_json.read_object(self._memory)
        ids, told = dict(saved.get("ids", {})), dict(saved.get("recorded", {}))
        told = {kind: max(told.get(kind, -1), recorded.get(kind, -1)) for kind in {*told, *recorded}}
        for name in self.names:
            before = ids.get(name)
            opened = self._attempt(name, lambda name=name, before=before: self._create(name, replace(run, saved_id=before)))  # type: ignore[misc]
            if opened is None:
                continue
            self._open[name] = opened
            self._skip[name] = {} if before is None or opened.hides_repeated else told
            ids[name] = opened.id
            say(f"Logging to {KINDS[name].title}: {opened.location}")
        with suppress(OSError):
            replace_file(self._memory, strict_json.dumps({"ids": ids, "recorded": told}, indent=2).encode() + b"\n")

    def log(self, kind: str, step: int, row: Mapping[str, Any]) -> None:
        """Log a row of the metrics, unless an earlier process has logged that step.

        Args:
            kind: ``train``, ``eval`` or ``test``.
            step: steps taken.
            row: values by name; those that are no numbers are left out.
        """
        metrics = {f"{kind}/{name}": float(value) for name, value in row.items() if isinstance(value, int | float)}
        for name, opened in list(self._open.items()):
            if step > self._skip[name].get(kind, -1):
                self._attempt(name, lambda opened=opened: opened.log(step, metrics))  # type: ignore[misc]

    def log_images(self, step: int, draw: Callable[[], Sequence[LoggedImage]]) -> None:
        """Log the images that ``draw`` returns; where no logger is open, it is not called. If it raises, there are none."""
        try:
            with kept_generators(self._device):
                images = draw() if self._open else []
        except Exception as error:
            self._warn(f"No images are logged: {error}")
            return
        for name, opened in list(self._open.items()):
            self._attempt(name, lambda opened=opened: opened.log_images(step, images))  # type: ignore[misc]

    def finish(self, status: Status) -> None:
        """Close all loggers; those that are closed already stay so."""
        for name, opened in list(self._open.items()):
            self._attempt(name, lambda opened=opened: opened.finish(status))  # type: ignore[misc]
        self._open.clear()

    def _create(self, name: str, run: LoggedRun) -> Logger:
        module = _module(name)
        module.connect()
        made: Logger = getattr(module, KINDS[name].class_name)(run)
        return made

    def _attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns; where it raises, drop the logger with a warning and return None."""
        try:
            with kept_generators(self._device):
                return work()
        except Exception as error:
            self._open.pop(name, None)
            reason = first_line(error)[:300]
            self._warn(
                f"{KINDS[name].title} failed and gets no more metrics: {reason}\nThe run goes on; metrics.jsonl has them all."
            )
            return None


def _module(name: str) -> Any:
    return import_module(f"stvit_cli.engine.loggers.{name}")
