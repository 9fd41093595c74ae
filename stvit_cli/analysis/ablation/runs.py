"""Train the rows of Table II: a directory with one ordinary run per row and seed, which can be stopped and resumed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stvit_cli import engine, tasks
from stvit_cli.analysis.ablation.report import Report, report_training
from stvit_cli.analysis.ablation.table import NUMBERS, Setting, build_table, family_of
from stvit_cli.engine.distributed import joined_world, was_restarted
from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.engine.run_dir import RunDir, require_free
from stvit_cli.engine.signals import stop_request
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.models.isotropic_rows import VARIANTS
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils.cpus import usable_cpus
from stvit_cli.utils.environment import is_main_process, world_size
from stvit_cli.utils.files import replace_file, writing

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.3  # between checks for processes that ended
LOG_LINES = 4  # at the end of a failed process's log, quoted in the message


@dataclass(frozen=True)
class Run:
    """One training run of the ablation.

    Attributes:
        number: of the row, 1 to 7.
        seed: of the run.
        recipe: resolved for the row and seed.
        path: run directory.
    """

    number: int
    seed: int
    recipe: Recipe
    path: Path

    @property
    def score(self) -> float | None:
        """Top-1 in percent after the last epoch; None until the run has finished."""
        rows = MetricsLog(RunDir(self.path).metrics).rows("eval")
        finished = bool(rows) and rows[-1]["epoch"] >= self.recipe.schedule.epochs
        return rows[-1]["top1"] if finished else None


@dataclass(frozen=True)
class Ablation:
    """Rows of Table II trained by one recipe.

    Attributes:
        path: directory of the runs and of the table.
        recipe: shared by all runs, apart from model, seed and name.
        numbers: of the rows.
        num_seeds: per row, counted up from the recipe's seed.
    """

    path: Path
    recipe: Recipe
    numbers: tuple[int, ...]
    num_seeds: int

    @property
    def family(self) -> str:
        """The family of models, see `family_of`."""
        return family_of(self.recipe.model.name)

    def runs(self) -> list[Run]:
        """Return all runs, seed by seed, so that a table with every row is available early."""
        first = self.recipe.train.seed
        return [self._run(number, seed) for seed in range(first, first + self.num_seeds) for number in self.numbers]

    def _run(self, number: int, seed: int) -> Run:
        model = self.family + NUMBERS[number]
        overrides = [f"model.name={model}", f"train.seed={seed}"]
        if VARIANTS[model].attention == "swin":
            overrides.append("model.grid_sizes=null")  # applies to STViT only: windows have no super tokens
        name = f"row{number}-seed{seed}"
        text = recipe_io.dump(self.recipe)
        return Run(
            number, seed, recipe_io.from_text(text, [*overrides, f"name={name}"], source=self.recipe.name), self.path / name
        )

    def scores(self) -> dict[int, list[float]]:
        """Return the top-1 of the finished runs in percent, by row number, in the order of the seeds."""
        result: dict[int, list[float]] = {}
        for run in self.runs():
            if run.score is not None:
                result.setdefault(run.number, []).append(run.score)
        return result

    def require_free(self) -> None:
        """Check that a new ablation can start.

        Raises:
            UserError: the directory is not empty, or the recipe's model is not a row of the table.
        """
        self.runs()
        if is_main_process() and not was_restarted():
            require_free(self.path)

    def save(self) -> None:
        """Write plan.json and recipe.yaml, from which `reopen` resumes."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(self.path / "plan.json", json.dumps({"rows": self.numbers, "seeds": self.num_seeds}).encode() + b"\n")
            replace_file(self.path / "recipe.yaml", recipe_io.dump(recipe_io.with_absolute_paths(self.recipe)).encode())


def reopen(path: Path, overrides: Sequence[str], numbers: tuple[int, ...] | None, num_seeds: int | None) -> Ablation:
    """Open the ablation in a directory to resume it, possibly with other rows or more seeds.

    Args:
        path: directory of the ablation.
        overrides: ``key=value``; they must not change the training.
        numbers: of the rows; those of the last time if None.
        num_seeds: per row; that of the last time if None.

    Raises:
        UserError: the directory holds no ablation, or the overrides change the recipe.
    """
    if not (path / "plan.json").is_file() or not (path / "recipe.yaml").is_file():
        raise UserError(f"{path} holds no ablation: expected a directory written by `stvit isotropic-ablation`.")
    plan = json.loads((path / "plan.json").read_text(encoding="utf-8"))
    stored = recipe_io.load(path / "recipe.yaml")
    recipe = recipe_io.load(path / "recipe.yaml", overrides)
    if changes := recipe_io.difference(stored, recipe):
        raise UserError(
            "\n".join(
                [f"{path} was started with another recipe, and all rows must use the same one. Changed:", *map(str, changes[:4])]
            )
        )
    return Ablation(path, recipe, numbers or tuple(plan["rows"]), num_seeds or plan["seeds"])


def train(ablation: Ablation, num_parallel: int) -> Report:
    """Train the unfinished runs; the table is written again after each.

    Args:
        ablation: which runs.
        num_parallel: number of runs at a time, each in its own process; with 1 they run in this one.

    Raises:
        Interrupted: stopped by a signal; the state of every run is saved.
        UserError: a run failed because of its data or settings, or ``num_parallel`` is more than 1 under torchrun.
    """
    if num_parallel > 1 and world_size() > 1:
        raise UserError("Parallel runs start their own processes, which does not work under torchrun; use one of the two.")
    runs = ablation.runs()
    # Building the task checks the data and counts its classes, before anything is written.
    num_classes = tasks.build(runs[0].recipe).weights_info().num_classes
    model = ablation.recipe.model
    setting = Setting(ablation.family, ablation.recipe.data.image_size, num_classes, model.in_chans, model.grid_sizes)
    if is_main_process():
        ablation.save()

    def report() -> Report:
        result = report_training(build_table(setting, ablation.scores()), ablation.recipe.name)
        if is_main_process():
            result.write(ablation.path)
        return result

    pending = [run for run in runs if run.score is None]
    if num_parallel > 1:
        _train_in_processes(pending, num_parallel, report)
    else:
        with joined_world(ablation.recipe.train.device):
            for number, run in enumerate(pending, start=1):
                if is_main_process():
                    model_name = run.recipe.model.name
                    logger.info("Run %d of %d: row %d, %s, seed %d", number, len(pending), run.number, model_name, run.seed)
                engine.fit(tasks.build(run.recipe), run.recipe, run.path, resume=RunDir(run.path).recipe.is_file())
                report()
    return report()


@dataclass(frozen=True)
class Slot:
    """Where a process runs: a GPU, or a part of the CPU's threads.

    Attributes:
        description: for log messages.
        environment: variables to set for the process.
    """

    description: str
    environment: dict[str, str]


def _train_in_processes(pending: list[Run], num_parallel: int, after_each: Callable[[], object]) -> None:
    """Run ``stvit train`` for every run, ``num_parallel`` at a time; forward a signal and wait until all have saved."""
    free = _slots(num_parallel)
    busy: list[tuple[Run, Slot, subprocess.Popen[bytes]]] = []
    with stop_request() as stop:
        try:
            while pending or busy:
                while pending and free:
                    run, slot = pending.pop(0), free.pop(0)
                    busy.append((run, slot, _start(run, slot)))
                    name = run.recipe.name
                    logger.info("%s: %s on %s, log in %s", name, run.recipe.model.name, slot.description, _log_file(run))
                time.sleep(POLL_SECONDS)
                for run, slot, process in [entry for entry in busy if entry[2].poll() is not None]:
                    busy.remove((run, slot, process))
                    free.append(slot)
                    _require_success(run, process.returncode)
                    after_each()
                if stop.number:
                    raise Interrupted(stop.number)
        finally:
            for _, _, process in busy:
                process.terminate()
            for _, _, process in busy:
                process.wait()


def _slots(num_parallel: int) -> list[Slot]:
    """Assign a GPU to each process, or an equal part of the CPU's threads. Raises UserError if there are too few GPUs."""
    num_gpus = torch.cuda.device_count()
    if not num_gpus:
        threads = max(1, usable_cpus() // num_parallel)
        return [Slot(f"the CPU with OMP_NUM_THREADS={threads}", {"OMP_NUM_THREADS": str(threads)})] * num_parallel
    if num_parallel > num_gpus:
        raise UserError(f"{num_parallel} parallel runs: found {num_gpus} GPUs, but each run needs its own.")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus)))).split(",")
    return [Slot(f"GPU {name}", {"CUDA_VISIBLE_DEVICES": name}) for name in names[:num_parallel]]


def _start(run: Run, slot: Slot) -> subprocess.Popen[bytes]:
    recipe_file = run.path.with_suffix(".yaml")
    with writing(recipe_file):
        replace_file(recipe_file, recipe_io.dump(run.recipe).encode())
    has_started = RunDir(run.path).recipe.is_file()
    arguments = ["--resume", str(run.path)] if has_started else ["--recipe", str(recipe_file), "--output", str(run.path)]
    with writing(_log_file(run)), _log_file(run).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "stvit_cli", "train", *arguments],
            env=os.environ | slot.environment | {"STVIT_ABLATION": str(run.path.parent)},  # see engine.signals
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that Ctrl-C reaches it once, forwarded by this process
        )


def _log_file(run: Run) -> Path:
    return run.path.with_suffix(".log")


def _require_success(run: Run, code: int) -> None:
    if code in (130, 143):
        logger.info("%s was stopped by a signal.", run.recipe.name)
        raise Interrupted(signal.SIGINT if code == 130 else signal.SIGTERM)
    if code:
        tail = _log_file(run).read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        raise UserError("\n".join([f"{run.recipe.name} ended with code {code}; its log {_log_file(run)} ends:", *tail]))
