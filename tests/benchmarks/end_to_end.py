"""Measure the throughput of a whole training run relative to its bare training step.

python tests/benchmarks/end_to_end.py [--data IMAGENET] [--model stvit-s] [--batch-size 8] [--steps 40] [--rounds 3]

The engine runs the recipe deit300. It alternates between a number of its own steps (loader, augmentation, mixing, logging, ...)
and the same number of bare steps of the same model: forward, loss, backward and fused AdamW on a batch in memory. Without
--data the images are 256 JPEG files of 500 x 375, cropped from the photograph in tests/images. Times are wall-clock times.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from stvit_cli import engine, tasks
from stvit_cli.analysis.cost.throughput import machine
from stvit_cli.cli.memory import keep_freed_memory
from stvit_cli.cli.output import print_table
from stvit_cli.engine import trainer
from stvit_cli.engine.session import Session
from stvit_cli.engine.step import StepResult, TrainStep
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.base import move

PHOTOGRAPH = Path(__file__).parents[1] / "images" / "coffee.jpg"


def write_photographs(root: Path, number: int = 256) -> Path:
    """Write a folder like ImageNet, with two classes and images of ImageNet's usual size."""
    with Image.open(PHOTOGRAPH) as opened:
        photograph = opened.convert("RGB")
    rng = random.Random(0)
    for index in range(number):
        width = rng.uniform(0.5, 0.95) * photograph.width
        left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - 0.66 * width)
        crop = photograph.resize((500, 375), Image.Resampling.BICUBIC, box=(left, top, left + width, top + 0.66 * width))
        for part in ("train", "val") if index < 4 else ("train",):
            folder = root / part / f"class{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            crop.save(folder / f"{index}.jpg", quality=92)
    return root


class Alternating:
    """Replaces the trainer's step: alternates ``steps`` of it and as many bare steps, and records the seconds of each turn."""

    def __init__(self, session: Session, steps: int) -> None:
        self.session, self.steps = session, steps
        self.whole_step = TrainStep(session)
        self.seconds: dict[str, list[float]] = {"whole": [], "bare": []}
        self.turn_start = 0.0
        self.batch: Any = None
        self.last: StepResult | None = None

    def __call__(self, step: int, feed: Iterator[Any], poll: Callable[[], tuple[int, bool]]) -> StepResult:
        turn, index = divmod(step, self.steps)
        if index == 0:
            now = time.perf_counter()
            if turn:  # from the first step of a turn to that of the next, so that the trainer's work between steps is included
                self.seconds["bare" if turn % 2 == 0 else "whole"].append(now - self.turn_start)
            self.turn_start = now
        if turn % 2 == 0 or self.last is None:
            self.last = self.whole_step(step, self._kept(feed), poll)
        else:
            self._bare_step()
        return self.last

    def _kept(self, feed: Iterator[Any]) -> Iterator[Any]:
        for batch in feed:
            self.batch = batch
            yield batch

    def _bare_step(self) -> None:
        session = self.session
        batch = move(self.batch, session.world.device)
        with session.autocast():
            loss = sum(session.task.training_loss(session.parallel, batch).values())
        loss.backward()
        session.optimizer.step()
        session.optimizer.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="stvit-s")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or write_photographs(Path(folder) / "photographs")
        overrides = {
            "model.name": options.model,
            "data.dir": data,
            "data.num_workers": options.workers,
            "train.global_batch_size": options.batch_size,
            "train.precision": "bf16" if torch.cuda.is_available() else "fp32",
            "schedule.steps": 2 * options.rounds * options.steps + 1,  # the additional step ends the last turn
            "train.eval_every_steps": 2 * options.rounds * options.steps + 1,
        }
        recipe = recipe_io.load("deit300", [f"{key}={value}" for key, value in overrides.items()])
        turns: list[Alternating] = []

        def alternating(session: Session) -> Alternating:
            turns.append(Alternating(session, options.steps))
            return turns[0]

        with patch.object(trainer, "TrainStep", alternating):
            engine.fit(tasks.build(recipe), recipe, Path(folder) / "run")
    report(turns[0].seconds, options)


def report(seconds: dict[str, list[float]], options: argparse.Namespace) -> None:
    images = options.steps * options.batch_size
    rates = {name: [images / second for second in values] for name, values in seconds.items()}
    ratios = [whole / bare for whole, bare in zip(rates["whole"], rates["bare"], strict=True)]
    rows = [
        [name, f"{statistics.median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}"] for name, values in rates.items()
    ]
    rows.append(["whole / bare", f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}"])
    title = f"{options.model}, recipe deit300, batch {options.batch_size}, {options.workers} workers, {machine('cpu')}"
    print_table(["images/s", "median", "min", "max"], rows, title)


if __name__ == "__main__":
    main()
