"""Runs that are killed at random moments and resumed, again and again: every one must end with the bits of the unbroken run."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import toy

from stvit_cli import tasks
from stvit_cli.engine.trainer import fit
from stvit_cli.recipe import io as recipe_io

Start = Callable[[Path, bool, int], Callable[[], list[object]]]


def killed_and_resumed(start: Start, folder: Path, draw: random.Random, whole: float, kills: int) -> int:
    """Run into ``folder``, killed ``kills`` times somewhere in the ``whole`` seconds a run takes; return how often that hit."""
    hits = 0
    for attempt in range(kills + 5):
        waiting = start(folder, (folder / "run" / "recipe.yaml").exists(), draw.choice([0, 1, 2]))
        if attempt < kills:
            time.sleep(draw.uniform(0, whole))
            pids = waiting.pids  # type: ignore[attr-defined]
            for pid in draw.choice([pids, pids[-1:]]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        codes = [ended.code for ended in waiting()]  # type: ignore[attr-defined]
        if set(codes) == {0}:
            return hits
        assert set(codes) <= {-9, 2, 0}, codes
        hits += -9 in codes
    raise AssertionError(f"{folder} did not come to its end")


def check(start: Start, root: Path, processes: int, runs: int) -> None:
    began = time.monotonic()
    assert {ended.code for ended in start(root / "unbroken", False, 0)()} == {0}  # type: ignore[attr-defined]
    whole = time.monotonic() - began
    draw = random.Random(processes)
    hits = 0
    for number in range(runs):
        hits += killed_and_resumed(start, root / str(number), draw, whole, kills=3)
        toy.assert_same_outcome(root / str(number) / "run", root / "unbroken" / "run")
        shutil.rmtree(root / str(number))
    print(f"{runs} runs of {processes} process(es), {hits} kills, all bit-equal")
    assert hits >= runs


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "runs"), [(1, 50), (2, 10)])
def test_the_stand_in(tmp_path: Path, processes: int, runs: int) -> None:
    def start(folder: Path, resume: bool, workers: int) -> Callable[[], list[object]]:
        settings = (f"data.num_workers={workers}", "train.log_every_steps=1")
        return toy.start(lambda: toy.train(folder, *settings, norm=True, resume=resume), folder, processes)  # type: ignore[no-any-return]

    check(start, tmp_path, processes, runs)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_stvit_with_everything_on(tmp_path: Path, processes: int) -> None:
    """Drop path, Mixup and CutMix, RandAugment, erasing, repeated augmentation, moving average, layer-wise rates."""
    settings = (
        *("model.name=stvit-nano", "model.drop_path_rate=0.2", "data.kind=digits", "data.image_size=32", "train.device=cpu"),
        *("augment.mixup=0.8", "augment.cutmix=1.0", "augment.label_smoothing=0.1", "augment.random_erasing=0.25"),
        *("augment.auto_augment=rand-m9-mstd0.5-inc1", "augment.repeats=3", "train.ema_decay=0.9", "optim.layer_decay=0.8"),
        *("train.global_batch_size=128", "train.batch_size_per_device=32", "schedule.epochs=2", "train.log_every_steps=1"),
        *("checkpoint.every_steps=3", "optim.clip_grad_norm=1.0"),
    )

    def start(folder: Path, resume: bool, workers: int) -> Callable[[], list[object]]:
        recipe = recipe_io.from_text("name: all", [*settings, f"data.num_workers={workers}"])
        return toy.start(lambda: fit(tasks.build(recipe), recipe, folder / "run", resume=resume), folder, processes)  # type: ignore[no-any-return]

    check(start, tmp_path, processes, runs=3)
