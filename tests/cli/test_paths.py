"""Paths name the same folder from everywhere, and ``~`` is the home directory wherever it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stvit_cli.api import TrainingResult
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.recipe import FREE_ON_RESUME, PATH_KEYS
from stvit_cli.recipe import io as recipe_io


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory, which is not the working directory."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a run would have been started with."""
    found: dict[str, Any] = {}

    def note(recipe: Any, run_dir: Path, *, weights: Path | None, **_: Any) -> TrainingResult:
        found.update(dir=recipe.data.dir, results_json=recipe.detection.results_json, output=run_dir, weights=weights)
        return TrainingResult(run_dir, {})

    monkeypatch.setattr("stvit_cli.api.training._fit", note)
    return found


@pytest.mark.parametrize(
    "words",
    [
        ["--data=~/x", "--output=~/run", "--weights=~/w"],
        ["--data", "~/x", "--output", "~/run", "--weights", "~/w"],
        ["data.dir=~/x", "--output=~/run", "--weights=~/w"],
        ['data.dir="~/x"', "--output=~/run", "--weights=~/w"],
    ],
)
def test_a_tilde_is_the_home_directory_in_every_option(stvit, home: Path, started: dict[str, Any], words: list[str]) -> None:
    ended = stvit("train", "--recipe", "coco-mask-rcnn-1x", "detection.results_json=~/r.json", *words)
    assert ended.code == 0, ended.err
    expected = {"dir": str(home / "x"), "results_json": str(home / "r.json"), "output": home / "run", "weights": home / "w"}
    assert started == expected
    assert list(Path().iterdir()) == []


def test_a_recipe_is_found_below_the_home_directory_or_by_its_name(stvit, home: Path) -> None:
    (home / "mine.yaml").write_text("data:\n  dir: ~/x\n")
    assert "~/x" in stvit("recipes", "show", "~/mine.yaml").out
    assert stvit("recipes", "show", "quickstart").out == recipe_io.find("quickstart").read_text()


def test_a_relative_folder_is_kept_as_an_absolute_path(stvit, home: Path, started: dict[str, Any]) -> None:
    assert stvit("train", "--recipe", "quickstart", "data.kind=imagefolder", "--data", "../photos/./x").code == 0
    assert started["dir"] == str(home.parent / "photos" / "x")


def test_a_run_started_from_python_keeps_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_io.from_text("{task: detection, data: {kind: coco}}", ["data.dir=photos", "detection.results_json=out.json"])
    run_dir = RunDir(tmp_path / "run")
    lock = run_dir.clear()
    run_dir.write_recipe(recipe)
    monkeypatch.chdir("/")
    kept = recipe_io.load(run_dir.recipe)
    assert (kept.data.dir, kept.detection.results_json) == (str(tmp_path / "photos"), str(tmp_path / "out.json"))
    run_dir.check_resumable(recipe)
    run_dir.check_resumable(kept)
    assert recipe_io.recipe_hash(kept) == recipe_io.recipe_hash(recipe)
    lock.release()


def test_paths_decide_nothing_that_is_learned() -> None:
    assert set(PATH_KEYS) <= FREE_ON_RESUME


def test_the_hash_of_a_recipe_is_that_of_earlier_versions() -> None:
    assert recipe_io.recipe_hash(recipe_io.from_text("name: x", ["data.dir=photos"])) == recipe_io.recipe_hash(
        recipe_io.from_text("name: y", ["data.dir=/elsewhere/photos"])
    )
