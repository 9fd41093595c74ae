"""Writes into a run directory: metrics, curves, weights and checkpoints, by rank 0 alone and only while it holds the lock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from stvit_cli.engine import checkpoint
from stvit_cli.engine.curves import draw_curves
from stvit_cli.engine.evaluation import Evaluated
from stvit_cli.engine.finite_weights import require_finite_weights
from stvit_cli.engine.kept_evaluation import write_evaluation
from stvit_cli.engine.loggers.base import LoggedImage, LoggedRun, Status
from stvit_cli.engine.loggers.group import Loggers
from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.engine.run_lock import RunLock
from stvit_cli.engine.session import Session
from stvit_cli.engine.state import RunState, capture
from stvit_cli.models.weights.file import save_weights
from stvit_cli.recipe.io import flatten, recipe_hash
from stvit_cli.recipe.tasks import other_tasks_sections
from stvit_cli.utils.files import replace_file, writing


class RunWriter:
    """The files of a run. Its methods are called on every rank; rank 0 writes, and the others wait for it.

    Attributes:
        metrics_log: the rows of ``metrics.jsonl``.
        saved_step: step of the newest checkpoint, -1 for none.
        saved_at: when that was written, by `time.monotonic`.
        recorded: by kind of row, the last step that was recorded before this process took the run over.
        loggers: the experiment trackers; none on ranks other than 0.

    Args:
        session: the run.
        run_dir: its directory.
    """

    def __init__(self, session: Session, run_dir: RunDir) -> None:
        self.session, self.run_dir = session, run_dir
        self.metrics_log = MetricsLog(run_dir.metrics)
        self.saved_step = -1
        self.recorded: dict[str, int] = {}
        self.saved_at = self._drawn_at = time.monotonic()
        self._lock: RunLock | None = None  # rank 0's
        world = session.world
        self.loggers = Loggers(session.recipe.loggers if world.is_main else (), run_dir.loggers, world.device)

    def lock(self, acquire: Callable[[], RunLock]) -> list[str]:
        """Lock the run directory on rank 0: all processes that torchrun started are one run.

        Args:
            acquire: takes the lock.

        Returns:
            Warnings for the user.

        Raises:
            UserError: another run is in the directory.
        """

        def work() -> bool:
            self._lock = acquire()
            return self._lock.is_shared

        is_shared = self.session.world.on_main(work)
        path = self.run_dir.path
        return [f"Warning: the file system of {path} has no locks; start no other run in it."] if is_shared else []

    def open_loggers(self, step: int, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Start logging to the experiment trackers of the recipe.

        Args:
            step: steps taken before.
            say: prints where to look.
            warn: prints a warning.
        """
        if self.loggers.names:
            recipe = self.session.recipe
            others = other_tasks_sections(recipe.task, recipe.data.kind)
            config = {key: value for key, value in flatten(recipe).items() if key.partition(".")[0] not in others}
            environment = self.run_dir.read_environment()
            run = LoggedRun(self.run_dir.path, self.run_dir.path.resolve().name, step, config, environment)
            self.loggers.open(run, self.recorded, say, warn)

    def log_images(self, step: int, draw: Callable[[], Sequence[LoggedImage]]) -> None:
        """Log the images that ``draw`` returns, where there is a logger."""
        self.loggers.log_images(step, draw)

    def close(self, status: Status) -> None:
        """Close the loggers and release the lock."""
        self.loggers.finish(status)
        if self._lock is not None:
            self._lock.release()

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Add a row to the metrics.

        Args:
            kind: ``train``, ``eval`` or ``test``.
            step: steps taken.
            values: what was measured, by name.
        """
        row = {"kind": kind, "step": step, "epoch": self.session.timeline.epoch(step)} | values

        def work() -> None:
            self.metrics_log.append(row)
            self.loggers.log(kind, step, row)

        self._write(work)

    def save_weights(self, state: RunState, best: Evaluated | None = None) -> None:
        """Write the last weights and their moving average.

        Args:
            state: of the run.
            best: what the last evaluation found of the best weights, which are then written too, with their predictions.
        """
        self._write(lambda: self._save_weights(state, best))

    def _save_weights(self, state: RunState, best: Evaluated | None) -> None:
        session = self.session
        # The task was built before the run's length and batch were fitted to its data: the run's recipe counts.
        info = replace(session.task.weights_info(), recipe_hash=recipe_hash(session.recipe))
        averaged = None if session.ema is None else session.ema.module
        weights = {self.run_dir.last: session.model}
        if averaged is not None:
            weights[self.run_dir.last_ema] = averaged
        if best is not None:
            weights[self.run_dir.best] = averaged if averaged is not None and state.best["ema"] else session.model
        for path, model in weights.items():
            with writing(path):
                save_weights(path, model, info)
        if best is not None:
            write_evaluation(self.run_dir, session.task.name, state.step, best, info.class_names)

    def draw_curves(self, *, interval: float = 0.0) -> None:
        """Draw ``curves.png``, unless that was done less than ``interval`` seconds ago."""
        if self.session.world.broadcast(time.monotonic() - self._drawn_at >= interval):
            self._write(self._draw_curves)

    def _draw_curves(self) -> None:
        self._drawn_at = time.monotonic()
        train, evals = self.metrics_log.rows("train"), self.metrics_log.rows("eval")
        image = draw_curves(train, evals, self.session.task.main_metric, self.session.recipe.name)
        with writing(self.run_dir.curves):
            replace_file(self.run_dir.curves, image)

    def save_checkpoint(self, state: RunState) -> None:
        """Write a checkpoint of ``state``; at most one for each step.

        Raises:
            UserError: weights are not finite, or the checkpoint cannot be written.
        """
        if self.saved_step == state.step:
            return

        def work() -> None:
            require_finite_weights(self.session, state, self.run_dir)
            tensors, content = capture(self.session, state, self.metrics_log.size())
            checkpoint.save(self.run_dir.checkpoints, state.step, tensors, content, self.session.recipe.checkpoint.keep)

        self._write(work)
        self.saved_step, self.saved_at = state.step, time.monotonic()

    def _write(self, work: Callable[[], None]) -> None:
        def checked() -> None:
            assert self._lock is not None
            self._lock.require_held()
            work()

        self.session.world.on_main(checked)
