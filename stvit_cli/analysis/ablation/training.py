"""Train the runs of an ablation, one after the other or side by side. A run that fails does not end the others."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from stvit_cli.analysis.ablation.processes import run_in_processes
from stvit_cli.analysis.ablation.runs import MAX_LINES, Failure, Run
from stvit_cli.engine.distributed import joined_world, was_restarted
from stvit_cli.engine.run_dir import require_free
from stvit_cli.engine.run_lock import RunLock
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils import strict_json
from stvit_cli.utils.environment import is_main_process, world_size
from stvit_cli.utils.files import replace_file, writing
from stvit_cli.utils.text import first_line

logger = logging.getLogger(__name__)

Table = TypeVar("Table")


def train_runs(
    runs: Sequence[Run], train: Callable[[Run], object], num_parallel: int = 1, after_each: Callable[[], object] = lambda: None
) -> None:
    """Train the runs that have no score yet; those that diverged are left as they are.

    Args:
        runs: in the order in which they are trained.
        train: trains one run in this process, or resumes it.
        num_parallel: number of runs at a time. More than one: each in its own process, on a GPU of its own or on an equal part
            of the CPU's threads.
        after_each: called when a run has ended.

    Raises:
        Interrupted: stopped by a signal; the state of every run is saved.
        UserError: ``num_parallel`` is more than 1 under torchrun, or there are too few GPUs; under torchrun also what a run says.
    """
    if num_parallel > 1 and world_size() > 1:
        raise UserError("Parallel runs start their own processes, which does not work under torchrun; use one of the two.")
    pending = [run for run in runs if run.score is None and not run.is_diverged]

    def ended(run: Run, message: str | None) -> None:
        failure = None if message is None else Failure.of(message)
        if is_main_process():
            run.note_failure(failure)
        if failure is not None:
            logger.warning("%s %s: %s", run.path.name, failure.kind, first_line(UserError(failure.message)))
        after_each()

    if num_parallel > 1:
        run_in_processes(pending, num_parallel, ended)
        return
    with joined_world(pending[0].recipe.train.device if pending else "cpu"):
        for number, run in enumerate(pending, start=1):
            if is_main_process():
                logger.info("Run %d of %d: %s, seed %d", number, len(pending), run.setting, run.seed)
            ended(run, _message_of(lambda run=run: train(run)))  # type: ignore[misc]


def _message_of(work: Callable[[], object]) -> str | None:
    """Return what a failing run says; None where it ends well. Of several processes none may go on alone."""
    try:
        work()
    except Interrupted:
        raise
    except UserError as error:
        if world_size() > 1:
            raise
        return str(error)
    except Exception as error:
        if world_size() > 1:
            raise
        logger.error("%s", "".join(traceback.format_exception(error)))
        return f"internal error: {type(error).__name__}: {first_line(error)}"
    return None


def require_free_directory(path: Path) -> None:
    """Check that a new ablation can start in a directory. Raises UserError where it holds something."""
    if is_main_process() and not was_restarted():
        require_free(path)


def save_plan(path: Path, plan: Mapping[str, Any], recipe: Recipe, indent: int | None = None) -> None:
    """Write plan.json and recipe.yaml, from which an ablation is reopened.

    Args:
        path: directory of the ablation.
        plan: what is trained, as JSON.
        recipe: shared by all runs.
        indent: of the JSON.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        replace_file(path / "plan.json", strict_json.dumps(plan, indent=indent).encode() + b"\n")
        replace_file(path / "recipe.yaml", recipe_io.dump(recipe_io.with_absolute_paths(recipe)).encode())


def train_directory(
    path: Path,
    runs: Sequence[Run],
    train: Callable[[Run], object],
    num_parallel: int,
    save: Callable[[], object],
    tabulate: Callable[[], Table],
) -> Table:
    """Train the runs of an ablation in its locked directory, and return its table.

    Args:
        path: directory of the ablation.
        runs: see `train_runs`.
        train: see `train_runs`.
        num_parallel: see `train_runs`.
        save: writes what the ablation is reopened from; called on the main process.
        tabulate: writes the table of the runs that have ended, and returns it; called after each.
    """
    with locked(path):
        if is_main_process():
            save()
        train_runs(runs, train, num_parallel, tabulate)
        return tabulate()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on an ablation's directory. Raises UserError where another process trains in it."""
    if not is_main_process():
        yield
        return
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    lock = RunLock.acquire(path)
    try:
        yield
    finally:
        lock.release()


def what_failed(runs: Sequence[Run], command: str) -> str | None:
    """Say which runs failed for another reason than divergence, and how to try them again; None where none did.

    Args:
        runs: of the ablation.
        command: resumes it.
    """
    found = [(run.path.name, run.failure) for run in runs]
    failed = [(name, failure.message) for name, failure in found if failure is not None and failure.kind == "failed"]
    if not failed:
        return None
    name, message = failed[0]
    which = f"{name}, the first of them" if len(failed) > 1 else name
    lines = [f"{len(failed)} of {len(runs)} runs failed; the table has the others. {which}:"]
    return "\n".join([*lines, *(f"  {line}" for line in message.splitlines()[: MAX_LINES - 1]), f"Try again: {command}"])
