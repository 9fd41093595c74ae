"""A new run from a checkpoint of another one: exact where nothing is changed, and the way on after a run has diverged."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import toy
from torch import Tensor

from stvit_cli import engine
from stvit_cli.engine import checkpoint
from stvit_cli.engine.branch import Branch, saved_steps
from stvit_cli.engine.run_dir import RunDir, require_free
from stvit_cli.engine.trainer import fit
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io

MICRO_BATCHES = 4


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that ended in its twelfth step, with checkpoints of steps 8 and 10."""
    folder = tmp_path_factory.mktemp("diverged")

    def on_loss(call: int, loss: Tensor) -> Tensor:
        return loss * float("nan") if call == 11 * MICRO_BATCHES + 1 else loss

    (ended,) = toy.start(lambda: toy.train(folder, norm=True, on_loss=on_loss), folder)()
    assert ended.code == 2
    (folder / "said").write_text(ended.message)
    assert saved_steps(folder / "run") == [8, 10]
    return folder / "run"


def branch(source: Path, step: int, folder: Path, *overrides: str, processes: int = 1) -> list[Any]:
    """Start a run from a step, in processes of its own."""

    def work() -> None:
        fit(toy.ToyTask(norm=True), toy.recipe(*overrides), folder / "run", branch=Branch(source, step))

    return list(toy.start(work, folder, processes)())


@pytest.mark.parametrize("step", [8, 10], ids=["within an epoch", "after an evaluation"])
def test_without_changes_it_gives_the_bits_of_the_unbroken_run(diverged: Path, unbroken: Path, tmp_path: Path, step: int) -> None:
    before = contents(diverged)
    (ended,) = branch(diverged, step, tmp_path)
    assert ended.code == 0, ended.message
    toy.assert_same_outcome(tmp_path / "run", unbroken)
    assert contents(diverged) == before
    started = json.loads((tmp_path / "run" / "environment.json").read_text())["started_from"]
    assert started == {"run": str(diverged.resolve()), "step": step}


def test_killed_and_resumed_it_is_a_run_like_any_other(
    diverged: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_loss(call: int, loss: Tensor) -> Tensor:
        if call == 3 * MICRO_BATCHES:
            toy.kill_self()
        return loss

    def work(resume: bool) -> None:
        task = toy.ToyTask(norm=True, on_loss=None if resume else on_loss)
        fit(task, toy.recipe(), tmp_path / "run", resume=resume, branch=None if resume else Branch(diverged, 10))

    assert [ended.code for ended in toy.start(lambda: work(False), tmp_path)()] == [-9]
    assert [ended.code for ended in toy.start(lambda: work(True), tmp_path)()] == [0]
    toy.assert_same_outcome(tmp_path / "run", unbroken)


def test_killed_before_its_recipe_is_written_it_leaves_a_directory_that_is_free(
    diverged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        monkeypatch.setattr(RunDir, "write_recipe", lambda *_: toy.kill_self())
        fit(toy.ToyTask(norm=True), toy.recipe(), tmp_path / "run", branch=Branch(diverged, 10))

    assert [ended.code for ended in toy.start(work, tmp_path)()] == [-9]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"step_00000010"}
    require_free(tmp_path / "run")
    (ended,) = branch(diverged, 8, tmp_path)
    assert ended.code == 0, ended.message
    (tmp_path / "run" / "recipe.yaml").unlink()
    with pytest.raises(UserError, match="is not empty"):
        require_free(tmp_path / "run")


def test_changed_settings_count_from_the_checkpoint_on(diverged: Path, unbroken: Path, tmp_path: Path) -> None:
    changed = ("optim.lr=5e-3", "train.log_every_steps=1")
    (ended,) = branch(diverged, 10, tmp_path, *changed)
    assert ended.code == 0, ended.message
    rows = [row for row in toy.outcome(tmp_path / "run")[1] if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [3, 6, 9, *range(11, 21)]
    full = {row["step"]: row["lr"] for row in toy.outcome(unbroken)[1] if row["kind"] == "train"}
    for row in rows:
        if row["step"] in full:
            ratio = row["lr"] / full[row["step"]]
            assert ratio == pytest.approx(1.0 if row["step"] <= 10 else 0.5, abs=0.1)
    kept = recipe_io.load(tmp_path / "run" / "recipe.yaml")
    assert kept.optim.lr == 5e-3
    assert engine.fit(toy.ToyTask(norm=True), kept, tmp_path / "run", resume=True)["steps"] == 20


@pytest.mark.parametrize(
    "changed",
    [("train.ema_decay=null",), ("train.precision=fp16",), ("finetune.freeze_backbone=true",), ("schedule.epochs=5",)],
    ids=" ".join,
)
def test_settings_that_change_what_a_checkpoint_holds(diverged: Path, tmp_path: Path, changed: tuple[str, ...]) -> None:
    (ended,) = branch(diverged, 10, tmp_path, *changed)
    assert ended.code == 0, ended.message
    newest = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert newest.step == (25 if "schedule.epochs=5" in changed else 20)
    assert ("ema" in newest.tensors) == ("train.ema_decay=null" not in changed)
    assert bool(newest.state["scaler"]) == ("train.precision=fp16" in changed)


def test_an_average_and_weights_that_were_not_there_before(tmp_path: Path) -> None:
    first = ("schedule.epochs=2", "train.ema_decay=null", "finetune.freeze_backbone=true")
    toy.train(tmp_path, *first)
    fit(toy.ToyTask(), toy.recipe("schedule.epochs=3"), tmp_path / "more", branch=Branch(tmp_path / "run", 10))
    newest = checkpoint.load_newest(tmp_path / "more" / "checkpoints")
    assert newest.step == 15
    assert "ema" in newest.tensors
    assert "0.weight/exp_avg" in newest.tensors["optimizer"]


def test_two_processes_start_from_it_too(diverged: Path, unbroken: Path, tmp_path: Path) -> None:
    assert [ended.code for ended in branch(diverged, 10, tmp_path, processes=2)] == [0, 0]
    ours, theirs = (toy.outcome(folder)[1][-1] for folder in (tmp_path / "run", unbroken))
    assert ours["step"] == theirs["step"] == 20
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.2)


def test_a_step_without_a_checkpoint_is_answered_with_those_that_there_are(diverged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no checkpoint of step 9; it has those of step 8, 10\."):
        Branch(diverged, 9).require()
    with pytest.raises(UserError, match="not the directory of a run"):
        Branch(tmp_path, 9).require()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    toy.train(tmp_path, "schedule.epochs=2")
    (tmp_path / "run" / "checkpoints" / "step_00000010" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"step_00000010 is damaged: model.safetensors is not as it was written"):
        fit(toy.ToyTask(), toy.recipe("schedule.epochs=3"), tmp_path / "new", branch=Branch(tmp_path / "run", 10))
    assert not (tmp_path / "new").exists()


def test_another_model_other_classes_or_no_steps_left_are_refused(
    diverged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*overrides: str, norm: bool = True) -> None:
        fit(toy.ToyTask(norm=norm), toy.recipe(*overrides), tmp_path / "new", branch=Branch(diverged, 10))

    with pytest.raises(UserError, match=r"does not fit the changed recipe: \d+ tensors differ, such as "):
        start(norm=False)
    with pytest.raises(UserError, match="would end after step 10, so nothing is left to train from step 10"):
        start("schedule.epochs=2")
    info = toy.ToyTask().weights_info()
    swapped = type(info)("toy", num_classes=toy.NUM_CLASSES, class_names=tuple("gfedcba"))
    monkeypatch.setattr(toy.ToyTask, "weights_info", lambda self: swapped)
    with pytest.raises(UserError, match="class_names is another one"):
        start()
    assert not (tmp_path / "new").exists()


def test_the_advice_after_a_nan_can_be_followed(diverged: Path) -> None:
    said = (diverged.parent / "said").read_text()
    assert len(said.splitlines()) <= 6
    (line,) = [line for line in said.splitlines() if line.startswith("  stvit ")]
    words = shlex.split(line)
    assert words[:6] == ["stvit", "train", "--resume", str(diverged), "--from-step", "10"]
    Branch(diverged, 10).require()
    changed = recipe_io.load(diverged / "recipe.yaml", words[6:])
    assert {change.key for change in recipe_io.difference(toy.recipe(), changed)} == {"optim.lr"}
    assert changed.optim.lr == 5e-3
    assert "of step 8" in said


@pytest.mark.parametrize(
    "settings", [("schedule.min_lr=9e-3",), ("schedule.warmup_lr=1e-2",), ("optim.clip_grad_norm=null", "train.precision=fp16")]
)
def test_the_advice_is_a_valid_recipe_whatever_the_settings(settings: tuple[str, ...]) -> None:
    from stvit_cli.engine.branch import stabilizing_overrides

    recipe = toy.recipe(*settings)
    changed = recipe_io.from_text(recipe_io.dump(recipe), stabilizing_overrides(recipe))
    assert changed.optim.lr == recipe.optim.lr / 2
    assert changed.optim.clip_grad_norm == 1
