"""A run on shards is killed and resumed to the same bits, with any number of loader workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import toy
from helpers.shards import write_shards

from stvit_cli import engine, tasks
from stvit_cli.data import loader
from stvit_cli.data.shards import index_builder
from stvit_cli.recipe import io as recipe_io

SETTINGS = (
    *("data.kind=shards", "data.image_size=32", "data.in_memory=false", "data.val_fraction=0.2", "train.global_batch_size=8"),
    *("schedule.steps=5", "schedule.warmup_epochs=0", "train.eval_every_steps=4", "train.device=cpu", "train.precise_bn_steps=0"),
    *("augment.random_erasing=0.5", "checkpoint.every_steps=1", "train.report=false", "train.batch_size_per_device=4"),
)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(index_builder, "cache_dir", lambda: tmp_path / "cache")  # the kernels' stays where it is
    monkeypatch.setattr(loader, "usable_workers", lambda number: number)
    write_shards(tmp_path / "shards", "all", shards=4, images=9, size=32)
    return tmp_path / "shards"


def fit(shards: Path, folder: Path, *overrides: str, resume: bool = False, kill_at: int = 0) -> None:
    recipe = recipe_io.load("quickstart", [*SETTINGS, f"data.dir={shards}", *overrides])
    task: Any = tasks.build(recipe)
    toy.kill_at_loss(task, kill_at)
    engine.fit(task, recipe, folder / "run", resume=resume)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("shuffle", ["global", pytest.param("block", marks=pytest.mark.slow)])
def test_killed_with_0_2_and_4_workers_it_ends_with_the_same_bits(shards: Path, tmp_path: Path, shuffle: str) -> None:
    keys = ("data.shuffle=block", "data.shuffle_window=12") if shuffle == "block" else ()
    fit(shards, tmp_path / "whole", *keys, "data.num_workers=0")
    killed = tmp_path / "killed"
    for number, workers in enumerate((0, 2, 4)):  # of two micro-batches a step, each kill lets one step be done
        more, resume = (*keys, f"data.num_workers={workers}"), number > 0
        ended = toy.start(lambda more=more, resume=resume: fit(shards, killed, *more, resume=resume, kill_at=4), killed)()
        assert ended[0].code == -9
    fit(shards, killed, *keys, "data.num_workers=4", resume=True)
    toy.assert_same_outcome(killed / "run", tmp_path / "whole" / "run")
