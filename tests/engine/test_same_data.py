"""A resumed run has the data it was started with, and data that cannot serve end it before anything is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import toy

from stvit_cli import engine
from stvit_cli.engine import state
from stvit_cli.errors import UserError

SHORT = ("schedule.epochs=2", "train.global_batch_size=16")


def test_resume_notices_renamed_or_exchanged_files(tmp_path: Path) -> None:
    engine.fit(toy.ToyTask(), toy.recipe(*SHORT), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    task = toy.ToyTask()
    task.data = "other points"
    with pytest.raises(UserError, match="other data: files of the training set have other names"):
        engine.fit(task, toy.recipe(*SHORT), tmp_path / "run", resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_checkpoint_without_a_hash_of_the_data_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = state.fingerprint
    with monkeypatch.context() as patched:
        patched.setattr(state, "fingerprint", lambda session: {k: v for k, v in fingerprint(session).items() if k != "data"})
        first = engine.fit(toy.ToyTask(), toy.recipe(*SHORT), tmp_path / "run")
    assert engine.fit(toy.ToyTask(), toy.recipe(*SHORT), tmp_path / "run", resume=True) == first


def test_class_names_in_another_spelling_of_unicode_are_the_same(tmp_path: Path) -> None:
    def task(name: str) -> Any:
        made = toy.ToyTask()
        names = (name, *map(str, range(toy.NUM_CLASSES - 1)))
        made.weights_info = lambda: dataclasses.replace(toy.ToyTask.weights_info(made), class_names=names)
        return made

    engine.fit(task("caf\u00e9"), toy.recipe(*SHORT), tmp_path / "run")
    engine.fit(task("cafe\u0301"), toy.recipe(*SHORT), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="other data: class_names was"):
        engine.fit(task("tea"), toy.recipe(*SHORT), tmp_path / "run", resume=True)


def test_lists_among_the_arguments_of_a_model_of_timm_are_the_same_after_they_were_saved(tmp_path: Path) -> None:
    def task(depths: tuple[int, ...]) -> Any:
        made = toy.ToyTask()
        made.weights_info = lambda: dataclasses.replace(toy.ToyTask.weights_info(made), kwargs={"depths": depths})
        return made

    engine.fit(task((2, 2)), toy.recipe(*SHORT), tmp_path / "run")
    engine.fit(task((2, 2)), toy.recipe(*SHORT), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="other data: kwargs was"):
        engine.fit(task((2, 3)), toy.recipe(*SHORT), tmp_path / "run", resume=True)


def test_settings_that_a_later_version_has_more_do_not_keep_a_run_from_resuming(tmp_path: Path) -> None:
    def task(settings: dict[str, Any]) -> Any:
        made = toy.ToyTask()
        made.weights_info = lambda: dataclasses.replace(toy.ToyTask.weights_info(made), settings=json.dumps(settings))
        return made

    engine.fit(task({"channels": 8}), toy.recipe(*SHORT), tmp_path / "run")
    engine.fit(task({"channels": 8, "label_values": None}), toy.recipe(*SHORT), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="other data: settings was"):
        engine.fit(task({"channels": 9}), toy.recipe(*SHORT), tmp_path / "run", resume=True)


def test_data_are_checked_before_anything_is_written_and_not_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> list[str]:
        raise UserError("3 images cannot be used")

    task = toy.ToyTask()
    task.check_data = fail
    with pytest.raises(UserError, match="3 images"):
        engine.fit(task, toy.recipe(*SHORT), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    task = toy.ToyTask()
    task.check_data = lambda: ["Warning: no foxes."]
    engine.fit(task, toy.recipe(*SHORT), tmp_path / "run")
    assert "Warning: no foxes." in capsys.readouterr().err
    task = toy.ToyTask()
    task.check_data = fail  # looked at when the run was started
    engine.fit(task, toy.recipe(*SHORT), tmp_path / "run", resume=True)
