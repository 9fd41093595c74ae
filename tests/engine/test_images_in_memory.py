"""A run whose images are kept in memory is that of the same run without, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import toy

from stvit_cli import engine, tasks
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io

SETTINGS = (
    *("data.image_size=32", "data.num_workers=1", "train.global_batch_size=8", "train.batch_size_per_device=4"),
    *("schedule.steps=3", "schedule.warmup_epochs=0", "train.eval_every_steps=2", "train.device=cpu", "train.precise_bn_steps=0"),
    *("augment.hflip=0.5", "augment.random_erasing=0.5", "checkpoint.every_steps=1", "train.report=false"),
)


def built(recipe: Recipe) -> Any:
    """Return the task with a few digits."""
    task: Any = tasks.build(recipe)
    for dataset, count in ((task.train_set, 24), (task.val_set, 12)):
        dataset.images._numbers = dataset.images._numbers[:count]
    return task


def fit(folder: Path, *overrides: str, resume: bool = False, kill_at: int = 0) -> Any:
    """Train stvit-nano on some digits; the process kills itself at a loss."""
    recipe = recipe_io.load("quickstart", [*SETTINGS, *overrides])
    task = built(recipe)
    toy.kill_at_loss(task, kill_at)
    engine.fit(task, recipe, folder / "run", resume=resume)
    return task


def test_killed_and_resumed_without_memory_gives_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = fit(tmp_path / "files", "data.in_memory=false")
    assert not read.train_set.is_in_memory
    kept = fit(tmp_path / "memory")
    assert kept.train_set.is_in_memory
    assert kept.val_set.is_in_memory
    assert capsys.readouterr().err.count("All 36 images are decoded once and kept in memory: 0.1 MB (data.in_memory).") == 1
    toy.assert_same_outcome(tmp_path / "memory" / "run", tmp_path / "files" / "run")
    folder = tmp_path / "killed"
    assert toy.start(lambda: fit(folder, "data.in_memory=true", kill_at=6), folder)()[0].code == -9
    fit(folder, "data.in_memory=false", resume=True)
    toy.assert_same_outcome(folder / "run", tmp_path / "files" / "run")


def test_two_processes_see_the_same_images_either_way(tmp_path: Path) -> None:
    for name in ("false", "true"):
        folder, word = tmp_path / name, f"data.in_memory={name}"
        ended = toy.start(lambda folder=folder, word=word: fit(folder, word), folder, 2)()
        assert {process.code for process in ended} == {0}
    toy.assert_same_outcome(tmp_path / "true" / "run", tmp_path / "false" / "run")


def test_a_run_shorter_than_an_epoch_does_not_decode_all_images() -> None:
    task = built(recipe_io.load("quickstart", [*SETTINGS]))
    assert task.keep_images(23, lambda: False, lambda done, total: None) is None
    assert not task.train_set.is_in_memory
    assert task.keep_images(24, lambda: False, lambda done, total: None) is not None
