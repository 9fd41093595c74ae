"""Measure a training run on small images: with the images in memory, without, and its bare training step.

python tests/benchmarks/small_images.py [--data FOLDER] [--recipe NAME] [--batch-size 64] [--steps 10] [--rounds 4] [KEY=VALUE]

One engine alternates between a number of its own steps fed by workers that decode (data.in_memory=false), as many fed from
memory, and as many bare steps of the same model: forward, loss, backward and AdamW on one batch. Then it evaluates, both ways.
Without --data the images are those of Fashion-MNIST (Debian's package dataset-fashion-mnist). Times are wall-clock times.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from stvit_cli import engine, tasks
from stvit_cli.analysis.cost.throughput import machine
from stvit_cli.cli.memory import keep_freed_memory
from stvit_cli.cli.output import print_table
from stvit_cli.engine import trainer
from stvit_cli.engine.distributed import joined_world
from stvit_cli.engine.evaluation import evaluate_models
from stvit_cli.engine.session import Session, training_batches
from stvit_cli.engine.step import StepResult, TrainStep
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.base import move

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
KINDS = ("workers", "in memory", "bare")


class Alternating:
    """Replaces the trainer's step: alternates the kinds, ``steps`` each, and records seconds and waiting of each turn."""

    def __init__(self, session: Session, steps: int) -> None:
        self.session, self.steps = session, steps
        self.whole_step = TrainStep(session)
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.waited: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.feeds: dict[str, Iterator[Any]] = {}
        self.turn_start = self.turn_waited = 0.0
        self.last: StepResult | None = None

    def _start(self) -> None:
        """Start both loaders; the workers keep the data set as it is when they start."""
        train_set = self.session.task.train_set
        kept, train_set._kept = train_set._kept, None
        self.feeds["workers"] = iter(training_batches(self.session, 0))
        next(self.feeds["workers"])
        train_set._kept = kept
        self.feeds["in memory"] = iter(training_batches(self.session, 0))
        self.batch = move(next(self.feeds["in memory"]), self.session.world.device)

    def __call__(self, step: int, feed: Iterator[Any], poll: Callable[[], tuple[int, bool]]) -> StepResult:
        if not self.feeds:
            self._start()
        turn, index = divmod(step, self.steps)
        if index == 0:
            now = time.perf_counter()
            if turn:  # from the first step of a turn to that of the next, so that the trainer's work between steps is included
                self.seconds[KINDS[(turn - 1) % 3]].append(now - self.turn_start)
                self.waited[KINDS[(turn - 1) % 3]].append(self.turn_waited)
            self.turn_start, self.turn_waited = now, 0.0
        kind = KINDS[turn % 3]
        if kind == "bare" and self.last is not None:
            self._bare_step()
        else:
            self.last = self.whole_step(step, self.feeds[kind], poll)
            self.turn_waited += self.last.waited
        assert self.last is not None
        return self.last

    def _bare_step(self) -> None:
        session = self.session
        with session.autocast():
            loss = sum(session.task.training_loss(session.parallel, dict(self.batch)).values())
        loss.backward()
        session.optimizer.step()
        session.optimizer.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FASHION_MNIST)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--evaluated", type=int, default=2048, help="validation images")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    keep_freed_memory()
    steps = 3 * options.rounds * options.steps + 1  # the additional step ends the last turn
    overrides = {
        "data.kind": "idx",
        "data.dir": options.data,
        "data.image_size": 32,
        "data.in_memory": "true",
        "train.global_batch_size": options.batch_size,
        "schedule.steps": steps,
        "train.eval_every_steps": steps,
        "train.precise_bn_steps": 0,
        "train.report": "false",
    }
    recipe = recipe_io.load(options.recipe, [*(f"{key}={value}" for key, value in overrides.items()), *options.overrides])
    task: Any = tasks.build(recipe)
    task.val_set.images._chosen = task.val_set.images._chosen[: options.evaluated]
    turns: list[Alternating] = []

    def alternating(session: Session) -> Alternating:
        turns.append(Alternating(session, options.steps))
        return turns[0]

    with tempfile.TemporaryDirectory() as folder, patch.object(trainer, "TrainStep", alternating):
        engine.fit(task, recipe, Path(folder) / "run")
    report(turns[0], options)
    report_evaluation(task, recipe, options)


def of_turns(values: list[float], digits: int = 0) -> list[str]:
    """Return median, smallest and largest value."""
    return [f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))]


def report(turns: Alternating, options: argparse.Namespace) -> None:
    images = options.steps * options.batch_size
    rates = {kind: [images / second for second in values] for kind, values in turns.seconds.items()}
    rows = []
    for kind, values in rates.items():
        waits = [waited / seconds for waited, seconds in zip(turns.waited[kind], turns.seconds[kind], strict=True)]
        waiting = "-" if kind == "bare" else f"{100 * statistics.median(waits):.1f} %"
        rows.append([kind, *of_turns(values), waiting])
    for first, second in (("in memory", "workers"), ("in memory", "bare"), ("workers", "bare")):
        ratios = [one / other for one, other in zip(rates[first], rates[second], strict=True)]
        rows.append(
            [f"{first} / {second}", *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))), ""]
        )
    title = f"training, recipe {options.recipe}, 32 px, batch {options.batch_size}, {machine('cpu')}"
    print_table(["images/s", "median", "min", "max", "waiting for data"], rows, title)


def report_evaluation(task: Any, recipe: Any, options: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {"workers": [], "in memory": []}
    pixels = task.val_set._pixels
    with joined_world("cpu") as world:
        for _ in range(options.rounds):
            for kind, values in rates.items():
                task.val_set._pixels = pixels if kind == "in memory" else None
                since = time.perf_counter()
                evaluate_models(
                    task,
                    {"": task.model},
                    world,
                    batch_size=recipe.eval.batch_size,
                    num_workers=recipe.data.num_workers,
                )
                values.append(len(task.val_set) / (time.perf_counter() - since))
    rows = [[kind, *of_turns(values)] for kind, values in rates.items()]
    ratios = [one / other for one, other in zip(rates["in memory"], rates["workers"], strict=True)]
    rows.append(["in memory / workers", *of_turns(ratios, 2)])
    print_table(["images/s", "median", "min", "max"], rows, f"evaluation, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
