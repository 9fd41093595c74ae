"""A run that is killed anywhere and resumed ends with the same bits as the run that nothing disturbed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import toy
from torch import Tensor

from stvit_cli import engine
from stvit_cli.engine import checkpoint
from stvit_cli.errors import UserError
from stvit_cli.utils import files

STEPS, MICRO_BATCHES = 20, 4


def run(folder: Path, *overrides: str, resume: bool = False, kill_at_loss: int = 0, kill_at_write: int = 0) -> int:
    """Run or resume in a process of its own; return its exit code."""

    def at_loss(call: int, loss: Tensor) -> Tensor:
        if call == kill_at_loss:
            toy.kill_self()
        return loss

    def work() -> None:
        if kill_at_write:
            kill_in_the_middle_of_write(kill_at_write)
        engine.fit(toy.ToyTask(norm=True, on_loss=at_loss), toy.recipe(*overrides), folder / "run", resume=resume)

    return int(toy.start(work, folder)()[0].code)


def kill_in_the_middle_of_write(number: int) -> None:
    """From now on the process dies after half of file ``number`` of a checkpoint."""
    written = 0

    def write(path: Path, data: bytes) -> None:
        nonlocal written
        written += 1
        if written == number:
            path.write_bytes(data[: len(data) // 2])
            toy.kill_self()
        files.write_synced(path, data)

    checkpoint.write_synced = write  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("where", "kill"),
    [
        ("before the first step", {"kill_at_loss": 1}),
        ("in the middle of an accumulation", {"kill_at_loss": 7 * MICRO_BATCHES + 3}),
        ("in the middle of an epoch, far from a checkpoint", {"kill_at_loss": 13 * MICRO_BATCHES + 1}),
        ("in the middle of writing the weights", {"kill_at_write": 4 * 3 + 1}),
        ("in the middle of writing the state", {"kill_at_write": 4 * 4}),
        ("in the last step", {"kill_at_loss": STEPS * MICRO_BATCHES}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_killed_and_resumed_gives_the_same_bits(unbroken: Path, tmp_path: Path, where: str, kill: dict[str, int]) -> None:
    assert run(tmp_path, **kill) == -9
    assert run(tmp_path, resume=True) == 0
    toy.assert_same_outcome(tmp_path / "run", unbroken)


def test_the_number_of_loader_workers_and_the_cadences_may_change(unbroken: Path, tmp_path: Path) -> None:
    assert run(tmp_path, "data.num_workers=2", kill_at_loss=30) == -9
    assert run(tmp_path, "data.num_workers=1", "checkpoint.every_steps=3", resume=True, kill_at_loss=20) == -9
    assert run(tmp_path, resume=True) == 0
    toy.assert_same_outcome(tmp_path / "run", unbroken)


def test_killed_before_it_began_the_directory_takes_a_new_run(unbroken: Path, tmp_path: Path) -> None:
    assert run(tmp_path, kill_at_write=2) == -9
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert run(tmp_path) == 0
    toy.assert_same_outcome(tmp_path / "run", unbroken)


def test_a_damaged_newest_checkpoint_costs_a_few_steps(unbroken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, kill_at_loss=11 * MICRO_BATCHES) == -9
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))[-1]
    (newest / "optimizer.safetensors").write_bytes(b"x")
    capfd.readouterr()
    assert run(tmp_path, resume=True) == 0
    said = capfd.readouterr().err
    assert f"{newest.name} is damaged (optimizer.safetensors is not as it was written" in said
    assert "Resumed after step 8" in said
    toy.assert_same_outcome(tmp_path / "run", unbroken)


def test_a_finished_run_resumed_gives_its_figures_again(tmp_path: Path) -> None:
    first = engine.fit(toy.ToyTask(), toy.recipe("schedule.epochs=2"), tmp_path / "run")
    again = engine.fit(toy.ToyTask(), toy.recipe("schedule.epochs=2"), tmp_path / "run", resume=True)
    assert first == again
    assert first["steps"] == 10


def test_another_recipe_is_refused_with_what_changed(tmp_path: Path) -> None:
    engine.fit(toy.ToyTask(), toy.recipe("schedule.epochs=2"), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"(?s)started with another recipe.*optim.lr: 0.01 -> 0.02"):
        engine.fit(toy.ToyTask(), toy.recipe("schedule.epochs=2", "optim.lr=2e-2"), tmp_path / "run", resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_missing_directory_is_no_new_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the directory of a run: there is no such directory"):
        engine.fit(toy.ToyTask(), toy.recipe(), tmp_path / "nowhere", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_other_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.fit(toy.ToyTask(), toy.recipe("schedule.epochs=2"), tmp_path / "run")
    monkeypatch.setattr(toy.TrainPoints, "__len__", lambda self: 43)
    with pytest.raises(UserError, match="other data: num_samples was 41, now it is 43"):
        engine.fit(toy.ToyTask(), toy.recipe("schedule.epochs=2"), tmp_path / "run", resume=True)


def test_fp16_keeps_its_scale(tmp_path: Path) -> None:
    settings = ("train.precision=fp16", "schedule.epochs=2")
    assert run(tmp_path / "a", *settings) == 0
    assert run(tmp_path / "b", *settings, kill_at_loss=5 * MICRO_BATCHES + 2) == -9
    assert run(tmp_path / "b", *settings, resume=True) == 0
    toy.assert_same_outcome(tmp_path / "b" / "run", tmp_path / "a" / "run")
    newest = sorted((tmp_path / "b" / "run" / "checkpoints").iterdir())[-1]
    assert json.loads((newest / "state.json").read_text())["state"]["scaler"]["scale"] > 1


def test_resuming_without_the_kernels_warns_that_results_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kernels in (True, False):
        monkeypatch.setattr("stvit_cli.tasks.preparation.use_kernels", lambda *_, kernels=kernels, **__: kernels)
        toy.train(tmp_path, resume=not kernels)
    began, resumed = capsys.readouterr().err.split("Resumed after step 20.")
    assert re.search(r"parameters on cpu with custom kernels, \d+ threads?, batch", began)
    assert "Warning" not in began
    assert "runs with eager operators, before it was custom kernels" in " ".join(resumed.split())
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["kernels"] is True


def test_in_fp16_on_a_cpu_the_run_does_not_claim_to_train_with_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stvit_cli.tasks.preparation.use_kernels", lambda *_, **__: True)
    toy.train(tmp_path, "train.precision=fp16", "train.kernels=true", "schedule.epochs=2")
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"parameters on cpu, \d+ threads?, batch", said)
    assert "with train.precision=fp16 only evaluations use them" in said


def test_epochs_that_are_filled_resume_within_their_last_step(tmp_path: Path) -> None:
    """41 points in batches of 8: the sixth step of an epoch is one point and seven from the epoch's start."""
    words = ("data.drop_last=false", "schedule.epochs=2")
    assert run(tmp_path / "a", *words) == 0
    assert run(tmp_path / "b", *words, kill_at_loss=5 * MICRO_BATCHES + 2) == -9
    assert run(tmp_path / "b", *words, resume=True) == 0
    toy.assert_same_outcome(tmp_path / "b" / "run", tmp_path / "a" / "run")
    assert toy.outcome(tmp_path / "a" / "run")[1][-1]["step"] == 12
