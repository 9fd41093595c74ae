"""Callbacks see the run, and stop it, and cannot change what it learns."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import toy

from stvit_cli import Callback, TrainingView, engine
from stvit_cli.engine.trainer import Trainer
from stvit_cli.errors import Interrupted, UserError

SHORT = ("schedule.epochs=2", "schedule.warmup_epochs=0", "checkpoint.every_steps=2")


def fit(run_dir: Path, *callbacks: Any, resume: bool = False, recipe: tuple[str, ...] = SHORT, **task: Any) -> dict[str, float]:
    return engine.fit(toy.ToyTask(norm=True, **task), toy.recipe(*recipe), run_dir, resume=resume, callbacks=callbacks)


class Recorder(Callback):
    """Records the points of the loop, draws random numbers, and runs the model."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.views: list[TrainingView] = []

    def _note(self, point: str, run: TrainingView) -> None:
        self.calls.append((point, run.step))
        self.views.append(run)
        random.random()
        np.random.rand()
        torch.rand(3)
        run.model.eval()(torch.zeros(2, 6))
        assert not torch.is_grad_enabled()

    def on_start(self, run: TrainingView) -> None:
        self._note("start", run)

    def on_step(self, run: TrainingView) -> None:
        self._note("step", run)

    def on_evaluation(self, run: TrainingView) -> None:
        assert (run.run_dir / "last.safetensors").is_file()
        self._note("evaluation", run)

    def on_checkpoint(self, run: TrainingView) -> None:
        assert (run.run_dir / "checkpoints" / f"step_{run.step:08d}").is_dir()
        self._note("checkpoint", run)

    def on_end(self, run: TrainingView) -> None:
        self._note("end", run)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: TrainingView) -> None:
        if run.step == self.step:
            run.stop()


class FailAt(StopAt):
    error: BaseException | None = None

    def on_step(self, run: TrainingView) -> None:
        if run.step == self.step:
            raise KeyError("mine")

    def on_exception(self, run: TrainingView, error: BaseException) -> None:
        self.error = error
        raise RuntimeError("and this too")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    fit(run_dir)
    return run_dir


def test_a_run_with_callbacks_that_draw_random_numbers_gets_the_bits_of_one_without(plain: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    fit(tmp_path / "run", recorder)
    toy.assert_same_outcome(tmp_path / "run", plain)
    assert recorder.calls[:4] == [("start", 0), ("step", 1), ("step", 2), ("checkpoint", 2)]
    assert recorder.calls[-4:] == [("step", 10), ("evaluation", 10), ("checkpoint", 10), ("end", 10)]
    assert [step for point, step in recorder.calls if point == "evaluation"] == [5, 10]
    last = recorder.views[-1]
    assert (last.step, last.num_steps, last.epoch, last.is_main_process) == (10, 10, 2.0, True)
    assert set(last.losses) == {"loss"}
    assert last.lr > 0
    assert {"top1", "ema_top1"} <= set(last.metrics)
    assert "top1" in last.best
    with pytest.raises(TypeError):
        last.metrics["top1"] = 100.0  # type: ignore[index]
    assert recorder.views[0].metrics == {}


def test_a_callback_stops_the_run_which_resumes_to_the_same_bits(
    plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = fit(tmp_path / "run", StopAt(3))
    assert (result["steps"], "best_epoch" in result) == (3, False)
    assert "Stopped by a callback; saved after step 3 of 10. Resume with: stvit train --resume" in capfd.readouterr().err
    result = fit(tmp_path / "run", StopAt(7), resume=True)
    assert (result["steps"], result["best_epoch"]) == (7, 1)
    assert fit(tmp_path / "run", resume=True)["steps"] == 10
    toy.assert_same_outcome(tmp_path / "run", plain)


def test_an_exception_reaches_the_caller_with_the_state_saved(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = FailAt(3)
    with pytest.raises(KeyError, match="mine") as caught:
        fit(tmp_path / "run", callback)
    assert caught.value is callback.error
    assert caught.value.__notes__ == [f"The run is saved after step 3: stvit_cli.resume({str(tmp_path / 'run')!r})"]
    assert "FailAt.on_exception failed" in caplog.text
    fit(tmp_path / "run", resume=True)
    toy.assert_same_outcome(tmp_path / "run", plain)


def test_a_callback_that_changes_the_model_ends_the_run_and_nothing_of_it_is_saved(plain: Path, tmp_path: Path) -> None:
    class Forward(Callback):
        def on_step(self, run: TrainingView) -> None:
            if run.step == 3:
                run.model.train()(torch.zeros(2, 6))

    with pytest.raises(UserError, match=r"Forward.on_step changed weights or statistics of the model.*\n.*copy.deepcopy"):
        fit(tmp_path / "run", Forward())
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step_00000002"
    fit(tmp_path / "run", resume=True)
    toy.assert_same_outcome(tmp_path / "run", plain)


def test_a_callback_hears_of_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Heard(Callback):
        errors: list[BaseException] = []  # noqa: RUF012

        def on_step(self, run: TrainingView) -> None:
            if run.step == 2:
                trainer.stop.number = 15

        def on_exception(self, run: TrainingView, error: BaseException) -> None:
            self.errors.append(error)

    def call(self: Trainer, point: str, original: Any = Trainer._call) -> None:
        nonlocal trainer
        trainer = self
        original(self, point)

    trainer: Any = None
    monkeypatch.setattr(Trainer, "_call", call)
    with pytest.raises(Interrupted):
        fit(tmp_path / "run", Heard())
    assert [type(error) for error in Heard.errors] == [Interrupted]


@pytest.mark.parametrize(("wrong", "found"), [(Recorder, "the class Recorder"), (print, "a builtin_function_or_method")])
def test_what_is_no_callback_is_refused_before_anything_is_written(wrong: Any, found: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"callbacks: found {found}, expected instances of subclasses of stvit_cli.Callback"):
        fit(tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()


def test_one_of_two_processes_asks_and_both_stop_at_the_same_step(tmp_path: Path) -> None:
    class StopOfTheSecond(Callback):
        def on_step(self, run: TrainingView) -> None:
            if run.step == 3 and not run.is_main_process:
                run.stop()

    waiting = toy.start(lambda: fit(tmp_path / "run", StopOfTheSecond()), tmp_path / "two", world_size=2)
    assert [ended.code for ended in waiting()] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step_00000003"


def test_a_failure_in_one_of_two_processes_ends_both_and_only_some_with_callbacks_are_refused(tmp_path: Path) -> None:
    def is_second() -> bool:
        return os.environ["RANK"] == "1"

    ended = toy.start(lambda: fit(tmp_path / "run", FailAt(3 if is_second() else 99)), tmp_path / "two", world_size=2)()
    assert [process.code for process in ended] == [2, 1]
    assert "A callback of process 1 failed in on_step: KeyError('mine')" in ended[0].message
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step_00000003"
    ended = toy.start(lambda: fit(tmp_path / "other", *([StopAt(1)] if is_second() else [])), tmp_path / "some", world_size=2)()
    assert [process.code for process in ended] == [2, 2]
    assert "some processes of the run have callbacks and some have none" in ended[0].message
