"""Of many processes one builds the index; a killed one is taken over, and what it did is kept."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.shards import write_shards

from stvit_cli.data.shards import build_lock, index_builder, open_shards
from stvit_cli.data.shards.index_file import read_index, write_index
from stvit_cli.data.shards.part import Part
from stvit_cli.errors import WriteError
from stvit_cli.utils import file_lock


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_shards(tmp_path / "shards")
    return tmp_path / "shards"


def _noting(log: Path, kill_at: int = 0) -> Any:
    """Return a `scan` that writes a line for each shard, and kills its process at one."""
    scan, calls = index_builder.scan, []

    def noted(file: Any, **more: Any) -> Part:
        calls.append(1)
        if len(calls) == kill_at:
            time.sleep(0.05)
            os.kill(os.getpid(), 9)
        with log.open("a") as lines:
            lines.write(f"{file.name}\n")
        return scan(file, **more)

    return noted


@pytest.mark.parametrize("locks", [True, False])
def test_one_of_many_builds_and_takes_over_from_a_killed_one(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:  # a file system without them

        def refused(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(file_lock.fcntl, "flock", refused)
        monkeypatch.setattr(build_lock, "STALE_S", 0.3)
    monkeypatch.setattr(index_builder, "THREADS", 1)
    log, context = tmp_path / "log", multiprocessing.get_context("fork")

    def first() -> None:
        index_builder.scan = _noting(log, kill_at=3)
        open_shards(shards)

    def other() -> None:
        index_builder.scan = _noting(log)
        assert len(open_shards(shards)) == 18

    builder = context.Process(target=first)
    builder.start()
    others = [context.Process(target=other) for _ in range(6)]
    for process in others:
        process.start()
    for process in (builder, *others):
        process.join(30)
    assert {process.exitcode for process in others} == {0}
    names = log.read_text().split()
    assert set(names) == {f"toy-train-000{number}.tar" for number in range(3)}
    if builder.exitcode == -9:  # unless another one came first and did it all
        assert len(names) <= 4
    else:
        assert len(names) == 3
    assert not list((tmp_path / "cache" / "stvit").glob("*.journal"))


def test_a_journal_cut_in_the_middle_of_a_record_is_used_up_to_there(shards: Path, tmp_path: Path) -> None:
    whole = open_shards(shards)
    file = next((tmp_path / "cache" / "stvit").glob("*.index"))
    content = read_index(file)
    assert content is not None
    journal = file.with_name(f"{file.name}.journal")
    with journal.open("wb") as log:
        for identity, part in list(content.parts().items())[:2]:
            index_builder._append(log, identity, part)
    os.truncate(journal, journal.stat().st_size - 5)
    file.unlink()
    again = open_shards(shards)
    assert (again.fingerprint, again.labels().tolist()) == (whole.fingerprint, whole.labels().tolist())


@pytest.mark.parametrize("damage", [lambda content: content[:40], lambda content: content[:-1], lambda content: b"x" * 900])
def test_an_index_that_is_not_whole_is_built_again(shards: Path, tmp_path: Path, damage: Any) -> None:
    before = open_shards(shards).fingerprint
    file = next((tmp_path / "cache" / "stvit").glob("*.index"))
    file.write_bytes(damage(file.read_bytes()))
    assert open_shards(shards).fingerprint == before


def test_a_cache_that_cannot_be_written_is_named(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(WriteError, match=r"(?s)The index of the shards cannot be written to .*XDG_CACHE_HOME"):
        open_shards(shards)


def test_an_image_takes_twelve_bytes_and_the_columns_are_mapped(tmp_path: Path) -> None:
    count = 100_000
    part = Part(
        np.arange(count, dtype=np.uint32), np.ones(count, dtype=np.uint32), np.zeros(count, dtype=np.int32), (("label", "7"),)
    )
    write_index(tmp_path / "x.index", [("a.tar", 5, "1"), ("b.tar", 5, "1")], [part, part])
    assert (tmp_path / "x.index").stat().st_size < 2 * 12 * count + 10_000
    content = read_index(tmp_path / "x.index")
    assert content is not None
    base = content.positions
    while not isinstance(base, np.memmap):
        base = base.base
    assert int(content.positions[count + 3]) == 3
