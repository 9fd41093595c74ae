"""Two runs never share a directory, and a directory that is taken away ends its run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import toy
from torch import Tensor

from stvit_cli.engine.run_dir import make_new
from stvit_cli.engine.run_lock import LOCK, RunLock, require_unlocked
from stvit_cli.errors import UserError
from stvit_cli.utils import file_lock


def test_a_second_run_is_refused_with_the_holder_named(tmp_path: Path) -> None:
    first = RunLock.acquire(tmp_path)
    for refused in (RunLock.acquire, require_unlocked):
        with pytest.raises(UserError, match=f"in use by another run: process {os.getpid()} on {socket.gethostname()}"):
            refused(tmp_path)
    first.release()
    assert list(tmp_path.iterdir()) == []
    require_unlocked(tmp_path)
    RunLock.acquire(tmp_path).release()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"pid": "x"}', b'{"pid": 1, "host": "\\u001b]0;title"}'])
def test_a_lock_file_of_any_content_is_read(tmp_path: Path, content: bytes) -> None:
    first = RunLock.acquire(tmp_path)
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(UserError, match="in use by another run") as refused:
        RunLock.acquire(tmp_path)
    assert "\x1b" not in str(refused.value)
    first.release()


def test_the_lock_of_a_killed_process_is_free_though_its_child_lives(tmp_path: Path) -> None:
    """A loader worker outlives its killed run by seconds."""

    def work() -> None:
        RunLock.acquire(tmp_path)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        (tmp_path / "child").write_text(str(child))
        time.sleep(0.2)  # until the child has left fork
        toy.kill_self()

    assert toy.start(work, tmp_path)()[0].code == -9
    child = int((tmp_path / "child").read_text())
    try:
        os.kill(child, 0)
        assert json.loads((tmp_path / LOCK).read_text())["pid"] != os.getpid()
        RunLock.acquire(tmp_path).release()
    finally:
        os.kill(child, 9)


def test_a_file_system_without_locks_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(file_lock.fcntl, "flock", refuse)
    toy.train(tmp_path, "schedule.epochs=2")
    assert "has no locks; start no other run in it" in capsys.readouterr().err


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_the_directory_of_a_running_one_writes_nothing(tmp_path: Path, resume: bool) -> None:
    seen: list[str] = []

    def start_another(call: int, loss: Tensor) -> Tensor:
        if call == 25:  # after the first evaluation
            with pytest.raises(UserError, match="is in use by another run") as refused:
                toy.train(tmp_path, "schedule.epochs=2", resume=resume)
            seen.append(str(refused.value))
        return loss

    toy.train(tmp_path, "schedule.epochs=2", on_loss=start_another)
    assert len(seen) == 1
    assert len(seen[0].splitlines()) <= 6
    toy.train(tmp_path / "alone", "schedule.epochs=2")
    toy.assert_same_outcome(tmp_path / "run", tmp_path / "alone" / "run")


def remove(run_dir: Path) -> None:
    shutil.rmtree(run_dir)


def rename(run_dir: Path) -> None:
    run_dir.rename(run_dir.with_name("elsewhere"))


def replace(run_dir: Path) -> None:
    remove(run_dir)
    run_dir.mkdir()
    (run_dir / LOCK).write_text("{}")
    (run_dir / "recipe.yaml").write_text("name: other\n")


@pytest.mark.parametrize("take_away", [remove, rename, replace])
def test_a_directory_that_is_taken_away_ends_the_run(tmp_path: Path, take_away: Any) -> None:
    def on_loss(call: int, loss: Tensor) -> Tensor:
        if call == 25:
            take_away(tmp_path / "run")
        return loss

    with pytest.raises(UserError, match=r"run was removed, renamed or replaced during the run") as ended:
        toy.train(tmp_path, on_loss=on_loss)
    assert len(str(ended.value).splitlines()) <= 6
    left = {path.name for path in tmp_path.glob("run/*")}
    assert left == ({LOCK, "recipe.yaml"} if take_away is replace else set())


def test_runs_of_one_second_have_directories_of_their_own(tmp_path: Path) -> None:
    made = [make_new(tmp_path / "runs" / "toy-20260101-000000") for _ in range(3)]
    assert [path.name for path in made] == [f"toy-20260101-000000{end}" for end in ("", "-2", "-3")]
    assert all(path.is_dir() for path in made)
