"""Shards on the command line: written from a folder, checked, trained on, evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stvit_cli import api

TINY = ("model.name=stvit-nano", "data.image_size=32", "data.num_workers=0", "train.global_batch_size=8", "train.report=false")
ONE_STEP = ("schedule.steps=1", "schedule.warmup_epochs=0", "train.eval_every_steps=1")


@pytest.fixture
def shards(stvit: Callable[..., Any], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ended = stvit("data", "shard", image_folder, tmp_path / "shards", "--size", "40kB", "--json", "-")
    assert ended.code == 0, ended.err
    assert f"--data {tmp_path / 'shards'}" in ended.err
    splits = {split["name"]: split["counts"] for split in json.loads(ended.out)["splits"]}
    assert (sum(splits["train"]), sum(splits["val"])) == (16, 6)
    assert len(splits["train"]) > 1
    return tmp_path / "shards"


def test_a_folder_is_written_as_shards_trained_on_and_evaluated(stvit: Callable[..., Any], shards: Path, tmp_path: Path) -> None:
    ended = stvit("train", "--recipe", "quickstart", "--data", shards, "--output", tmp_path / "run", *TINY, *ONE_STEP)
    assert ended.code == 0, ended.err
    ended = stvit("eval", tmp_path / "run", "--json", "-")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["num_images"] == 6


def test_the_same_command_does_nothing_twice_and_other_images_are_refused(
    stvit: Callable[..., Any], shards: Path, image_folder: Path
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    assert stvit("data", "shard", image_folder, shards, "--size", "40kB").code == 0
    assert {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")} == before
    ended = stvit("data", "shard", image_folder / "train", shards, "--size", "40kB")
    assert ended.code == 2
    assert str(shards) in ended.err


def test_ctrl_c_says_that_the_same_command_resumes(
    stvit: Callable[..., Any], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "data_shard", pressed)
    ended = stvit("data", "shard", image_folder, tmp_path / "shards")
    assert ended.code == 130
    assert ended.err.strip() == "Stopped; the same command resumes."


def test_damaged_shards_are_named(stvit: Callable[..., Any], shards: Path) -> None:
    assert stvit("data", "check", shards).code == 0
    damaged = next(iter(sorted(shards.glob("*train*.tar"))))
    damaged.write_bytes(damaged.read_bytes()[:-5000])
    ended = stvit("data", "check", shards)
    assert ended.code == 2
    assert damaged.name in ended.out + ended.err


@pytest.mark.parametrize(
    ("words", "said"), [(("nowhere", "out"), "nowhere"), ((".", "out", "--size", "big"), "--size: found big")]
)
def test_what_cannot_be_written(
    stvit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = stvit("data", "shard", *words)
    assert ended.code == 2
    assert said in ended.err
    assert list(tmp_path.iterdir()) == []
