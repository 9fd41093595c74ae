"""Many processes that share one index: one builds it, the others wait; a builder that is killed is replaced."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.shards import write_shards

from stvit_cli.data.shards import index_builder
from stvit_cli.data.shards.index import open_shards

SHARDS = 4


def start(number: int, work) -> list[int]:
    """Fork light processes; exit code 0 where ``work`` returned."""
    pids = []
    for rank in range(number):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                work(rank)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def codes(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


@pytest.mark.parametrize("processes", [12, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_one_process_reads_each_shard_and_all_have_the_same_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_shards(tmp_path / "data", shards=SHARDS)
    log, scan = tmp_path / "log", index_builder.scan

    def slow_scan(file, **options):
        with log.open("a") as lines:
            lines.write(f"{os.getpid()} {file.name}\n")
        time.sleep(0.05)
        return scan(file, **options)

    monkeypatch.setattr(index_builder, "scan", slow_scan)
    ended = start(processes, lambda rank: (tmp_path / f"rank-{rank}").write_text(open_shards(tmp_path / "data").fingerprint))
    assert codes(ended) == [0] * processes
    assert len({(tmp_path / f"rank-{rank}").read_text() for rank in range(processes)}) == 1
    readers = Counter(line.split()[0] for line in log.read_text().splitlines())
    assert list(readers.values()) == [SHARDS]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_builder_that_is_killed_is_replaced_and_its_shards_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_builder, "THREADS", 1)
    write_shards(tmp_path / "data", shards=SHARDS)
    log, scan = tmp_path / "log", index_builder.scan

    def scan_or_die(file, **options):
        taken = log.read_text().splitlines() if log.exists() else []
        with log.open("a") as lines:
            lines.write(f"{file.name}\n")
        if len(taken) == 2:  # the third shard
            time.sleep(0.5)  # another thread writes the journal
            os.kill(os.getpid(), signal.SIGKILL)
        return scan(file, **options)

    monkeypatch.setattr(index_builder, "scan", scan_or_die)
    ended = start(6, lambda rank: open_shards(tmp_path / "data"))
    assert sorted(codes(ended)) == [-9, *[0] * 5]
    counts = Counter(log.read_text().splitlines())
    assert sum(counts.values()) <= SHARDS + 2, "what the killed one had done is taken from its journal"
    assert len(counts) == SHARDS
