"""Training the rows of Table II: a directory of runs, each an ordinary run of its own, taken up where it was left."""

from __future__ import annotations

import json
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
from stvit_cli.engine.metrics_log import History
from stvit_cli.engine.run_dir import RunDir, require_free
from stvit_cli.engine.signals import stop_request
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.models.isotropic import VARIANTS
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils.environment import is_main_process, world_size
from stvit_cli.utils.files import replace_file, writing
from stvit_cli.utils.text import printable

POLL_SECONDS = 0.3  # between looks at the processes
LAST_LINES = 4  # of the log of a process that failed


@dataclass(frozen=True)
class Run:
    """A row with a seed: its recipe, and its directory."""

    number: int
    seed: int
    recipe: Recipe
    path: Path

    @property
    def score(self) -> float | None:
        """Top-1 in percent after the last epoch; none while the run is not over."""
        rows = History(RunDir(self.path).metrics).rows("eval")
        over = bool(rows) and rows[-1]["epoch"] >= self.recipe.schedule.epochs
        return rows[-1]["top1"] if over else None


@dataclass(frozen=True)
class Ablation:
    """The rows to train by one recipe, each with ``num_seeds`` seeds from the recipe's on, in a directory."""

    path: Path
    recipe: Recipe
    numbers: tuple[int, ...]
    num_seeds: int

    @property
    def family(self) -> str:
        return family_of(self.recipe.model.name)

    def runs(self) -> list[Run]:
        """Return all runs, seed by seed, so that a table with every row is there early."""
        first = self.recipe.train.seed
        return [self._run(number, seed) for seed in range(first, first + self.num_seeds) for number in self.numbers]

    def _run(self, number: int, seed: int) -> Run:
        model = self.family + NUMBERS[number]
        words = [f"model.name={model}", f"train.seed={seed}"]
        if VARIANTS[model].attention == "swin":
            words.append("model.grid_sizes=null")  # windows have no super tokens; what a recipe says of them is for STViT
        name = f"row{number}-seed{seed}"
        text = recipe_io.dump(self.recipe)
        return Run(number, seed, recipe_io.from_text(text, [*words, f"name={name}"], source=self.recipe.name), self.path / name)

    def scores(self) -> dict[int, list[float]]:
        """Return the top-1 of every finished run in the directory that has this budget, by row, in the order of the seeds."""
        found: dict[int, list[float]] = {}
        for run in self.runs():
            if run.score is not None:
                found.setdefault(run.number, []).append(run.score)
        return found

    def require_free(self) -> None:
        """Raise UserError where its directory holds something else, or the recipe is for no row of the table."""
        self.runs()
        if is_main_process() and not was_restarted():
            require_free(self.path)

    def note(self) -> None:
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(self.path / "plan.json", json.dumps({"rows": self.numbers, "seeds": self.num_seeds}).encode() + b"\n")
            replace_file(self.path / "recipe.yaml", recipe_io.dump(recipe_io.with_absolute_paths(self.recipe)).encode())


def reopen(path: Path, words: Sequence[str], numbers: tuple[int, ...] | None, num_seeds: int | None) -> Ablation:
    """Take up the ablation in a directory; other rows and more seeds may be asked for, but no other recipe.

    Raises:
        UserError: there is none, or the words change what is learned.
    """
    if not (path / "plan.json").is_file() or not (path / "recipe.yaml").is_file():
        raise UserError(f"{path} holds no ablation: expected what `stvit isotropic-ablation --recipe NAME --output DIR` wrote.")
    plan = json.loads((path / "plan.json").read_text(encoding="utf-8"))
    stored = recipe_io.load(path / "recipe.yaml")
    recipe = recipe_io.load(path / "recipe.yaml", words)
    if changes := recipe_io.difference(stored, recipe):
        raise UserError("\n".join([f"{path} was started with another recipe; all rows have the same:", *map(str, changes[:4])]))
    return Ablation(path, recipe, numbers or tuple(plan["rows"]), num_seeds or plan["seeds"])


def train(ablation: Ablation, num_parallel: int) -> Report:
    """Train what is not finished, one run after the other or ``num_parallel`` at once; after each write the table's files anew.

    Raises:
        Interrupted: a signal asked to stop; the state of every run is saved.
        UserError: a run failed for a reason that the person can mend.
    """
    if num_parallel > 1 and world_size() > 1:
        raise UserError("--parallel starts processes of its own; leave out either it or torchrun.")
    runs = ablation.runs()
    # The data is looked at, and its classes are counted, before anything is written.
    num_classes = tasks.build(runs[0].recipe).weights_info().num_classes
    model = ablation.recipe.model
    setting = Setting(ablation.family, ablation.recipe.data.image_size, num_classes, model.in_chans, model.grid_sizes)
    if is_main_process():
        ablation.note()

    def report() -> Report:
        result = report_training(build_table(setting, ablation.scores()), ablation.recipe.name)
        if is_main_process():
            result.write(ablation.path)
        return result

    waiting = [run for run in runs if run.score is None]
    if num_parallel > 1:
        _train_in_processes(waiting, num_parallel, report)
    else:
        with joined_world(ablation.recipe.train.device):
            for number, run in enumerate(waiting, start=1):
                if is_main_process():
                    print(
                        f"Run {number} of {len(waiting)}: row {run.number}, {run.recipe.model.name}, seed {run.seed}",
                        file=sys.stderr,
                    )
                engine.fit(tasks.build(run.recipe), run.recipe, run.path, resume=RunDir(run.path).recipe.is_file())
                report()
    return report()


@dataclass(frozen=True)
class Place:
    """Where a process runs, in words and in its environment."""

    words: str
    environment: dict[str, str]


def _train_in_processes(waiting: list[Run], num_parallel: int, after_each: Callable[[], object]) -> None:
    """Start ``stvit train`` for every run, as many at once as asked for; on a signal hand it on and wait until all have saved."""
    free = _places(num_parallel)
    busy: list[tuple[Run, Place, subprocess.Popen[bytes]]] = []
    with stop_request() as stop:
        try:
            while waiting or busy:
                while waiting and free:
                    run, place = waiting.pop(0), free.pop(0)
                    busy.append((run, place, _start(run, place)))
                    said = f"{run.recipe.name}: {run.recipe.model.name} {place.words}, log in {_log(run)}"
                    print(printable(said), file=sys.stderr)
                time.sleep(POLL_SECONDS)
                for run, place, process in [entry for entry in busy if entry[2].poll() is not None]:
                    busy.remove((run, place, process))
                    free.append(place)
                    _require_success(run, process.returncode)
                    after_each()
                if stop.number:
                    raise Interrupted(stop.number)
        finally:
            for _, _, process in busy:
                process.terminate()
            for _, _, process in busy:
                process.wait()


def _places(num_parallel: int) -> list[Place]:
    """Name a GPU for each process, or a share of the processor. Raises UserError where there are fewer GPUs."""
    num_gpus = torch.cuda.device_count()
    if not num_gpus:
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_parallel))}
        return [Place(f"on its share {number + 1}/{num_parallel} of the processor", threads) for number in range(num_parallel)]
    if num_parallel > num_gpus:
        raise UserError(f"--parallel {num_parallel}: found {num_gpus} GPUs; each process needs one of its own.")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus)))).split(",")
    return [Place(f"on GPU {name}", {"CUDA_VISIBLE_DEVICES": name}) for name in names[:num_parallel]]


def _start(run: Run, place: Place) -> subprocess.Popen[bytes]:
    recipe_file = run.path.with_suffix(".yaml")
    with writing(recipe_file):
        replace_file(recipe_file, recipe_io.dump(run.recipe).encode())
    again = RunDir(run.path).recipe.is_file()
    words = ["--resume", str(run.path)] if again else ["--recipe", str(recipe_file), "--output", str(run.path)]
    with writing(_log(run)), _log(run).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "stvit_cli", "train", *words],
            env=os.environ | place.environment | {"STVIT_ABLATION": str(run.path.parent)},  # see engine.signals
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that a Ctrl-C of the terminal reaches it once, through us
        )


def _log(run: Run) -> Path:
    return run.path.with_suffix(".log")


def _require_success(run: Run, code: int) -> None:
    if code in (130, 143):
        print(printable(f"{run.recipe.name} was stopped by a signal."), file=sys.stderr)
        raise Interrupted(signal.SIGINT if code == 130 else signal.SIGTERM)
    if code:
        tail = _log(run).read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        raise UserError("\n".join([f"{run.recipe.name} ended with code {code}; its log {_log(run)} ends:", *tail]))
