"""The first thing a newcomer does, shortened: train on the digits, then paste the commands that were printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest


def test_after_the_digits_there_is_a_image_to_predict(stvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["data.image_size=32", "data.num_workers=0", "schedule.steps=3", "schedule.warmup_epochs=0", "train.device=cpu"]
    ended = stvit("train", "--recipe", "quickstart", *short)
    assert ended.code == 0, ended.err
    (run_dir,) = Path("runs").iterdir()
    assert len(list((run_dir / "samples").iterdir())) == 10
    eval_command, predict_command = ended.err.splitlines()[-2:]
    assert stvit(*shlex.split(eval_command)[1:]).code == 0
    predicted = stvit(*shlex.split(predict_command)[1:])
    assert predicted.code == 0
    assert "digit-3.png" in predicted.out
