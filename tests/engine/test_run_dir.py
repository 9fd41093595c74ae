from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import toy
from safetensors.torch import load_file
from torch import nn

from stvit_cli import engine
from stvit_cli.engine.progress import Progress, duration
from stvit_cli.engine.run_dir import require_free
from stvit_cli.engine.schedule import Timeline
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import read_info
from stvit_cli.recipe import io as recipe_io


def test_what_a_run_leaves(unbroken: Path) -> None:
    names = {path.name for path in unbroken.iterdir()}
    weights = {"best.safetensors", "last.safetensors", "last_ema.safetensors"}
    metrics = {"metrics.jsonl", "metrics.csv", "evaluation.json", "predictions.parquet"}
    assert names == weights | metrics | {"recipe.yaml", "environment.json", "curves.png", "checkpoints"}
    assert recipe_io.load(unbroken / "recipe.yaml") == toy.recipe()
    assert {"python", "versions", "command", "device"} <= json.loads((unbroken / "environment.json").read_text()).keys()
    assert read_info(unbroken / "best.safetensors").num_classes == toy.NUM_CLASSES
    assert sorted(path.name for path in (unbroken / "checkpoints").iterdir()) == ["step_00000018", "step_00000020"]


def test_the_best_weights_are_those_of_the_best_evaluation(unbroken: Path) -> None:
    evals = [row for row in toy.outcome(unbroken)[1] if row["kind"] == "eval"]
    assert [row["epoch"] for row in evals] == [1, 2, 3, 4]
    best = max(max(row["top1"], row["ema_top1"]) for row in evals)
    task = toy.ToyTask(norm=True)
    task.model.load_state_dict(load_file(unbroken / "best.safetensors"))
    assert engine.evaluate(task, task.model)["top1"] == best


def test_the_figures_returned_are_those_of_the_best_weights(tmp_path: Path) -> None:
    found = engine.fit(toy.ToyTask(), toy.recipe("schedule.epochs=2", "train.ema_decay=null"), tmp_path / "run")
    evals = [row for row in toy.outcome(tmp_path / "run")[1] if row["kind"] == "eval"]
    best = max(evals, key=lambda row: (row["top1"], -row["loss"]))
    assert (found["top1"], found["loss"], found["best_epoch"]) == (best["top1"], best["loss"], best["epoch"])
    assert (found["last_top1"], found["steps"], found["num_images"]) == (evals[-1]["top1"], 10, toy.NUM_VAL)


def test_of_evaluations_with_equal_metrics_the_lower_loss_is_the_best(tmp_path: Path) -> None:
    tiny = ("optim.lr=1e-6", "schedule.warmup_lr=0", "schedule.min_lr=0", "schedule.epochs=3", "train.ema_decay=null")
    found = engine.fit(toy.ToyTask(dropout=0.0), toy.recipe(*tiny), tmp_path / "run")
    evals = [row for row in toy.outcome(tmp_path / "run")[1] if row["kind"] == "eval"]
    assert len({row["top1"] for row in evals}) == 1
    assert len({row["loss"] for row in evals}) == 3
    assert (found["loss"], found["best_epoch"]) == min((row["loss"], row["epoch"]) for row in evals)
    assert found["best_epoch"] > 1


def test_the_logged_loss_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    settings = ("schedule.epochs=2", "train.log_every_steps=1")
    engine.fit(toy.ToyTask(), toy.recipe(*settings), tmp_path / "each" / "run")
    engine.fit(toy.ToyTask(), toy.recipe("schedule.epochs=2"), tmp_path / "thirds" / "run")
    each, thirds = (
        [row for row in toy.outcome(tmp_path / name / "run")[1] if row["kind"] == "train"] for name in ("each", "thirds")
    )
    losses = [row["loss"] for row in each]
    assert [row["step"] for row in thirds] == [3, 6, 9, 10]
    for row, steps in zip(thirds, (losses[:3], losses[3:6], losses[6:9], losses[9:]), strict=True):
        assert row["loss"] == pytest.approx(sum(steps) / len(steps), rel=1e-12)


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        require_free(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        require_free(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"cannot be written: Not a directory"):
        require_free(tmp_path / "notes.txt" / "run")


PART = ".best.safetensors.0123abcd.part"


def test_leftovers_of_atomic_writes_neither_block_a_new_run_nor_stay(tmp_path: Path) -> None:
    for name in (PART, "checkpoints/.state.json.89abcdef.part"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(b"half")
    (tmp_path / "run" / "checkpoints" / ".step_00000040.writing").mkdir()
    require_free(tmp_path / "run")
    toy.train(tmp_path, "schedule.epochs=2")
    assert [path.name for path in (tmp_path / "run").rglob(".*")] == []


def test_resuming_removes_leftovers_of_atomic_writes(tmp_path: Path) -> None:
    toy.train(tmp_path, "schedule.epochs=2")
    (tmp_path / "run" / PART).write_bytes(b"half")
    (tmp_path / "run" / ".notes.part").write_bytes(b"the user's")
    (tmp_path / "run" / "checkpoints" / ".step_00000040.writing").mkdir()
    toy.train(tmp_path, "schedule.epochs=2", resume=True)
    assert [path.name for path in (tmp_path / "run").rglob(".*")] == [".notes.part"]


def test_someone_elses_checkpoints_are_not_taken_for_an_unfinished_start(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_00000500").mkdir(parents=True)
    with pytest.raises(UserError, match="is not empty"):
        require_free(tmp_path)
    assert (tmp_path / "checkpoints" / "step_00000500").is_dir()


def test_plain_lines_without_a_terminal_and_none_on_other_ranks(capfd: pytest.CaptureFixture[str]) -> None:
    timeline = Timeline(num_steps=20, steps_per_epoch=5, eval_every=5)
    for quiet in (False, True):
        with Progress(timeline, 0, quiet, "top1") as progress:
            progress._last_line = -1e9  # as if the last line were long ago
            progress.step(5, 0.5, 1e-3, 8, 4.0)
            progress._last_line = -1e9
            progress.step(7, 0.25, 1e-3, 8, 2.0)
            progress.evaluated(10, {"top1": 50.0, "num_images": 37}, best=True, seconds=10.0)
        said = capfd.readouterr()
        assert said.out == ""
        if quiet:
            assert said.err == ""
        else:
            first, second, header, row = said.err.splitlines()
            assert first == "epoch 1/4  step 5/20  loss 0.5000  lr 1.0e-03  2.0 images/s  1 min 0 s left"
            assert second == "epoch 2/4  step 7/20  loss 0.2500  lr 1.0e-03  4.0 images/s  26 s left"
            assert header == "  epoch  train loss  top-1 %    time left"
            assert row == "*     2      0.3750       50         40 s"


def test_the_time_left_is_known_where_an_epoch_is_one_step() -> None:
    """An evaluation follows every step, so that no two steps are neighbours in time."""
    progress = Progress(Timeline(num_steps=20, steps_per_epoch=1, eval_every=1), 0, quiet=True)
    assert progress.time_left(0) == "-"
    progress.step(1, 0.5, 1e-3, 8, 9.0)
    progress.evaluated(1, {}, best=True, seconds=0.5)
    assert progress.time_left(1) == "3 min 1 s"
    progress.step(2, 0.5, 1e-3, 8, 1.5)
    assert progress.time_left(2) == "36 s"


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (0.4, 59.4, 61, 3600, 90000)] == ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"]


def test_training_needs_a_module_with_blocks_to_compile_them(tmp_path: Path) -> None:
    assert isinstance(toy.ToyTask().model, nn.Sequential)
    with pytest.raises(UserError, match=r"train.compile: Sequential has no blocks"):
        engine.fit(toy.ToyTask(), toy.recipe("train.compile=true"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
