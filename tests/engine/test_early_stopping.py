"""Early stopping after evaluations without a better metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import toy
from torch import Tensor

from stvit_cli.engine.branch import Branch
from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.engine.trainer import fit

# The learning rate rises from nothing: no evaluation is better than the first, until the warmup's end.
FLAT = ("optim.lr=1e-9", "schedule.warmup_lr=0", "schedule.min_lr=0", "schedule.epochs=6", "train.ema_decay=null")


def evaluated(run_dir: Path) -> list[int]:
    return [row["step"] for row in MetricsLog(run_dir / "metrics.jsonl").rows("eval")]


def train(folder: Path, *, resume: bool = False, kill_at: int = 0) -> None:
    def at_loss(call: int, loss: Tensor) -> Tensor:
        if call == kill_at:
            toy.kill_self()
        return loss

    fit(toy.ToyTask(on_loss=at_loss), toy.recipe(*FLAT, "schedule.patience=2"), folder / "run", resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patience")
    assert [ended.code for ended in toy.start(lambda: train(folder), folder)()] == [0]
    return folder / "run"


def test_a_run_ends_after_as_many_evaluations_without_a_better_metric(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = fit(toy.ToyTask(), toy.recipe(*FLAT, "schedule.patience=2"), tmp_path / "run")
    assert evaluated(tmp_path / "run") == [5, 10, 15]
    assert (result["steps"], result["stopped_early"]) == (15, True)
    said = capfd.readouterr().err
    assert "Stopped early after step 15 of 30: 2 evaluations without a better top1 (schedule.patience=2)." in said
    again = fit(toy.ToyTask(), toy.recipe(*FLAT, "schedule.patience=2"), tmp_path / "run", resume=True)
    assert again == result
    assert evaluated(tmp_path / "run") == [5, 10, 15]


def test_the_steps_are_those_of_the_run_without_it(tmp_path: Path) -> None:
    """The LR schedule is that of the entire run, and an evaluation that is better starts the count again."""
    settings = ("schedule.epochs=6", "checkpoint.keep=30", "checkpoint.every_steps=5")
    results: dict[str, dict[str, Any]] = {
        patience: fit(toy.ToyTask(), toy.recipe(*settings, f"schedule.patience={patience}"), tmp_path / patience)
        for patience in ("null", "6")
    }
    assert results["6"].pop("stopped_early") is False
    del results["6"]["seconds"], results["null"]["seconds"]
    assert results["6"] == results["null"]
    toy.assert_same_outcome(tmp_path / "6", tmp_path / "null")


@pytest.mark.parametrize("kill_at", [4 * 8, 4 * 10 + 1, 4 * 14 + 3])
def test_a_resumed_run_decides_the_same(whole: Path, tmp_path: Path, kill_at: int) -> None:
    assert evaluated(whole) == [5, 10, 15]
    assert [ended.code for ended in toy.start(lambda: train(tmp_path, kill_at=kill_at), tmp_path)()] == [-9]
    assert [ended.code for ended in toy.start(lambda: train(tmp_path, resume=True), tmp_path)()] == [0]
    toy.assert_same_outcome(tmp_path / "run", whole)


def test_a_branch_counts_anew(tmp_path: Path, whole: Path) -> None:
    fit(toy.ToyTask(), toy.recipe(*FLAT, "schedule.patience=1"), tmp_path / "new", branch=Branch(whole, 15))
    assert evaluated(tmp_path / "new") == [5, 10, 15, 20]
