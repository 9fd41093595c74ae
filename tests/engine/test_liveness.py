"""Processes wait for each other's work as long as it takes, and not for one that has ended. Here they are threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from helpers.toy import start

from stvit_cli.engine import distributed, liveness
from stvit_cli.engine.distributed import joined_world
from stvit_cli.engine.liveness import Liveness
from stvit_cli.errors import UserError

PATIENCE_S = 0.4


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[Liveness, Liveness]:
    monkeypatch.setattr(liveness, "PATIENCE", timedelta(seconds=PATIENCE_S))
    monkeypatch.setattr(liveness, "BEAT_S", 0.02)
    monkeypatch.setattr(liveness, "SLICE", timedelta(milliseconds=20))
    store = dist.HashStore()
    return Liveness(store, 2), Liveness(store, 2)


def test_work_that_takes_longer_than_the_patience_is_waited_for(pair: tuple[Liveness, Liveness]) -> None:
    first, second = pair
    done: list[str] = []

    def slow() -> None:
        with first.announced(True):
            time.sleep(1.5 * PATIENCE_S)
            done.append("prepared")
        with first.working(ends_all=True):
            time.sleep(1.5 * PATIENCE_S)
            done.append("predicted")
        first.meet()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(slow)
        with second.announced(False):
            assert done == ["prepared"]
        second.meet()
        assert done == ["prepared", "predicted"]
        running.result()


def test_a_process_that_hangs_or_ends_is_not_waited_for(pair: tuple[Liveness, Liveness]) -> None:
    first, second = pair
    with pytest.raises(UserError, match="Nothing was heard of the other processes"):
        second.meet()

    def fails() -> None:
        with suppress(UserError), first.working(ends_all=True):
            raise UserError("its disk is full")

    thread = threading.Thread(target=fails)
    thread.start()
    with pytest.raises(UserError, match="Another process has ended: see its message"):
        second.meet()
    thread.join()


def test_each_number_is_counted_once_and_each_count_begins_at_zero(pair: tuple[Liveness, Liveness]) -> None:
    for _ in range(2):
        counts = [each.counter() for each in pair]
        assert [counts[0](), counts[1](), counts[0](), counts[1]()] == [0, 1, 2, 3]


def test_a_group_of_processes_waits_for_rank_0_beyond_the_timeout_of_its_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=2))

    def work() -> None:
        with joined_world("cpu") as world:
            assert world.on_main(lambda: (time.sleep(2.5), 7)[1]) == 7

    assert [ended.code for ended in start(work, tmp_path / "two", 2)()] == [0, 0]
