"""``stvit train --resume RUN --from-step N``: a new run from a checkpoint of another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stvit_cli.recipe import io as recipe_io


def test_a_run_is_continued_with_other_settings_in_a_new_directory(stvit, short_run: Path, tmp_path: Path) -> None:
    words = ["--from-step", "16", "schedule.epochs=9", "optim.lr=1e-4", "--output", tmp_path / "new", "--json", "-"]
    ended = stvit("train", "--resume", short_run, *words)
    assert ended.code == 0, ended.err
    assert f"Started from {short_run} after step 16." in ended.err
    assert json.loads(ended.out)["steps"] == 18
    assert recipe_io.load(tmp_path / "new" / "recipe.yaml").optim.lr == 1e-4
    assert stvit("eval", tmp_path / "new").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from-step", "7"], "holds no checkpoint of step 7; it has those of step"),
        (["--from-step", "16", "--weights", "w"], "leave --weights out"),
        (["optim.lr=1e-4"], "start a new run from one of its checkpoints: add --from-step N"),
        (["--output", "new"], "A new run from one of its checkpoints: add --from-step N"),
    ],
)
def test_what_does_not_go_together_says_how_to_go_on(stvit, short_run: Path, words: list[str], said: str) -> None:
    ended = stvit("train", "--resume", short_run, *words)
    assert ended.code == 2, ended.err
    assert said in ended.err, ended.err
    assert len(ended.err.splitlines()) <= 6, ended.err


def test_a_step_needs_a_run(stvit) -> None:
    ended = stvit("train", "--recipe", "quickstart", "--from-step", "3")
    assert ended.code == 2
    assert "--from-step N takes a checkpoint of the run that --resume RUN_DIR names" in ended.err
