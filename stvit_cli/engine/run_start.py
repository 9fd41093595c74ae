"""How a run starts: a new one, one from a checkpoint of another run, or one that is resumed."""

from __future__ import annotations

from typing import Any

import torch

from stvit_cli.engine import checkpoint
from stvit_cli.engine.branch import Branch, adapted, optimizer_name
from stvit_cli.engine.damage import check_content
from stvit_cli.engine.finite_weights import require_finite_weights
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.engine.run_lock import RunLock
from stvit_cli.engine.run_writer import RunWriter
from stvit_cli.engine.session import Session
from stvit_cli.engine.state import RunState, inexact_changes, restore
from stvit_cli.utils.files import writing


class RunStart:
    """Prepares the directory of a run and the state of its session: `new`, `branch` or `resume`.

    Attributes:
        notes: lines for the user.

    Args:
        session: the model, the data and the optimizer.
        run_dir: the run's directory.
        writer: writes into it.
    """

    def __init__(self, session: Session, run_dir: RunDir, writer: RunWriter) -> None:
        self.session, self.run_dir, self.writer = session, run_dir, writer
        self.recipe, self.world = session.recipe, session.world
        self.notes: list[str] = []

    def new(self) -> RunState:
        """Start a run. The first checkpoint holds the initial weights, so that there is always one to resume from."""
        self.notes += self.world.on_main(self.session.task.check_data)
        self.world.on_main(self.writer.loggers.connect)
        self.notes += self.writer.lock(self.run_dir.clear)
        state = RunState()
        self.writer.save_checkpoint(state)
        self._write_environment()
        self.world.on_main(lambda: self.run_dir.write_recipe(self.recipe))
        return state

    def _write_environment(self, started_from: dict[str, object] | None = None) -> None:
        device, size, kernels = str(self.world.device), self.world.size, self.session.preparation.kernels
        gpu = torch.cuda.get_device_name(self.world.device) if self.world.device.type == "cuda" else None
        parameters = sum(parameter.numel() for parameter in self.session.model.parameters())
        details = {"parameters": parameters, "gpu": gpu} | ({} if started_from is None else {"started_from": started_from})
        self.world.on_main(lambda: self.run_dir.write_environment(device, size, kernels, details))

    def branch(self, branch: Branch) -> RunState:
        """Start a run from a checkpoint of another one. With the same recipe it is bit-identical to that run's continuation."""
        source: checkpoint.Checkpoint | None = None

        def read() -> dict[str, Any]:
            nonlocal source
            source = branch.read()
            return source.state

        def is_kept(row: dict[str, Any]) -> bool:
            return not (row["kind"] == "eval" and row["step"] == branch.step and self.session.timeline.eval_due(branch.step))

        content = self.world.on_main(read)
        state = restore(self.session, source, adapted)
        self._require_finite_weights(state)
        self.notes += self.world.on_main(self.session.task.check_data)
        self.world.on_main(self.writer.loggers.connect)
        self.notes += self.writer.lock(self.run_dir.clear)
        # First of all files: it tells the remains of a run that was killed here from a user's checkpoints (`require_free`).
        self._write_environment({"run": str(branch.run_dir.resolve()), "step": branch.step})
        self.world.on_main(lambda: branch.copy_metrics(self.run_dir.metrics, content["metrics_bytes"], is_kept))
        self.notes.append(f"Started from {branch.run_dir} after step {state.step}.")
        self.notes += inexact_changes(self.session, content)
        before, now = optimizer_name(content), self.recipe.optim.name
        if before != now:
            self.notes.append(f"The optimizer {now} starts without state: the checkpoint's is that of {before}.")
        self.writer.save_checkpoint(state)
        self.world.on_main(lambda: self.run_dir.write_recipe(self.recipe))
        return state

    def resume(self) -> RunState:
        """Resume the run from its newest complete checkpoint."""
        self.world.on_main(self.run_dir.require_run)
        self.notes += self.writer.lock(lambda: RunLock.acquire(self.run_dir.path))
        self.world.on_main(self.run_dir.remove_leftovers)
        self.world.on_main(lambda: self.run_dir.check_resumable(self.recipe))
        newest: checkpoint.Checkpoint | None = None

        def read() -> dict[str, Any]:
            nonlocal newest
            newest = checkpoint.load_newest(
                self.run_dir.checkpoints, lambda found: check_content(self.session, found.step, found.tensors, found.state)
            )
            return newest.state

        content = self.world.on_main(read)
        state = restore(self.session, newest)
        self.writer.saved_step = state.step
        self.notes.append(f"Resumed after step {state.step}.")
        self.notes += inexact_changes(self.session, content)
        self._require_finite_weights(state)
        self.world.on_main(lambda: self._tidy(newest, content["metrics_bytes"]))
        return state

    def _require_finite_weights(self, state: RunState) -> None:
        self.world.on_main(lambda: require_finite_weights(self.session, state, self.run_dir))

    def _tidy(self, newest: checkpoint.Checkpoint | None, metrics_bytes: int) -> None:
        """Quarantine damaged checkpoints and drop the metrics of steps that will be taken again."""
        assert newest is not None
        self.writer.recorded = self.writer.metrics_log.last_steps()
        for path, reason in newest.skipped_damaged.items():
            self.notes.append(
                f"Warning: {path.name} is damaged ({reason}); {newest.path.name} is used. It is now {path.name}.damaged."
            )
            with writing(path):
                checkpoint.quarantine(path)
        if not self.writer.metrics_log.truncate(metrics_bytes):
            self.notes.append(f"Warning: {self.run_dir.metrics} has lost lines that were there at the checkpoint.")
