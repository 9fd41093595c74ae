"""What the command line says where another run is in the directory, and what runs without --output do."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from stvit_cli.api import TrainingResult
from stvit_cli.engine.run_lock import RunLock


@pytest.mark.parametrize("words", [["--resume"], ["--recipe", "quickstart", "--output"]], ids=" ".join)
def test_a_directory_in_use_is_refused_before_the_data_is_read(
    stvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("data:\n  kind: digits\n")
    monkeypatch.setattr("stvit_cli.tasks.build", lambda *_, **__: pytest.fail("built"))
    lock = RunLock.acquire(tmp_path)
    try:
        ended = stvit("train", *words, tmp_path)
    finally:
        lock.release()
    assert ended.code == 2
    assert f"is in use by another run: process {os.getpid()} on " in ended.err
    assert len(ended.err.splitlines()) <= 6


def test_runs_without_output_that_start_in_one_second_have_directories_of_their_own(
    stvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def run(recipe: Any, run_dir: Path, *_: Any, **__: Any) -> TrainingResult:
        seen.append(run_dir)
        if len(seen) < 3:  # the next run starts while this one is there
            assert stvit("train", "--recipe", "quickstart").code == 0
        return TrainingResult(run_dir, {})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    monkeypatch.setattr("stvit_cli.api.training._fit", run)
    assert stvit("train", "--recipe", "quickstart").code == 0
    assert [path.name for path in seen] == [f"quickstart-20260101-000000{end}" for end in ("", "-2", "-3")]
    assert list(tmp_path.iterdir()) == []  # nothing was written into them, so nothing is left


def test_a_failed_run_leaves_an_empty_runs_folder_that_was_there(stvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("stvit_cli.api.training._fit", lambda _, run_dir, **__: TrainingResult(run_dir, {}))
    assert stvit("train", "--recipe", "quickstart").code == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(("word", "expected"), [([], "own"), (["--data", "other"], "other"), (["data.dir=other"], "other")])
def test_a_resumed_run_keeps_its_data_whatever_the_recipe_names(
    stvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: list[str], expected: str
) -> None:
    (tmp_path / "recipe.yaml").write_text("data:\n  dir: own\n")
    (tmp_path / "mine.yaml").write_text("data:\n  dir: of the recipe\n")
    seen: list[str | None] = []

    def note(recipe: Any, run_dir: Path, **_: Any) -> TrainingResult:
        seen.append(recipe.data.dir)
        return TrainingResult(run_dir, {})

    monkeypatch.setattr("stvit_cli.api.training._fit", note)
    ended = stvit("train", "--resume", tmp_path, "--recipe", tmp_path / "mine.yaml", *word)
    assert ended.code == 0, ended.err
    assert seen == [expected]
