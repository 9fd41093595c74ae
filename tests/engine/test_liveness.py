"""Processes wait for each other's work as long as it takes, and not for one that has ended. Here they are threads."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest
import torch
import torch.distributed as dist
from helpers.toy import start

from stvit_cli.engine import distributed, liveness
from stvit_cli.engine.distributed import joined_world
from stvit_cli.engine.liveness import MEETING_PATIENCE, PATIENCE, Liveness
from stvit_cli.errors import UserError


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    monkeypatch.setattr(liveness, "BEAT_S", 0.002)
    monkeypatch.setattr(liveness, "SLICE", timedelta(milliseconds=2))
    return dist.HashStore()


class Clock:
    """Moves by some seconds when it is read."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


class BeatClock(Clock):
    """Moves when another count of the work has come; ends the work after ten times the patience."""

    def __init__(self, store: dist.Store, patience: timedelta, end: Event) -> None:
        super().__init__(0.6 * patience.total_seconds())
        self.store, self.patience, self.end, self.beats = store, patience, end, 0

    def __call__(self) -> float:
        if self.now > 10 * self.patience.total_seconds():
            self.end.set()
            return self.now
        started = time.monotonic()
        while self.store.add("beats", 0) == self.beats:
            assert time.monotonic() - started < 60, "no count came"
            time.sleep(0.001)
        self.beats = self.store.add("beats", 0)
        return super().__call__()


@pytest.mark.parametrize("is_meeting", [False, True])
def test_work_that_takes_longer_than_the_patience_is_waited_for(
    store: dist.Store, monkeypatch: pytest.MonkeyPatch, is_meeting: bool
) -> None:
    first, second, end = Liveness(store, 2), Liveness(store, 2), Event()
    monkeypatch.setattr(liveness, "monotonic", BeatClock(store, MEETING_PATIENCE if is_meeting else PATIENCE, end))

    def slow() -> None:
        with first.working() if is_meeting else first.announced(True):
            assert end.wait(60)
        if is_meeting:
            first.meet()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(slow)
        if is_meeting:
            with second.working():
                pass
            second.meet()
        else:
            with second.announced(False):
                assert end.is_set()
        assert end.is_set()
        running.result()


def test_a_process_that_was_killed_in_its_work_is_noticed_soon(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "monotonic", clock := Clock(10.0))
    alive = Liveness(store, 2)
    with alive.working():
        pass
    with pytest.raises(UserError, match="Nothing was heard of the other processes for 2 minutes"):
        alive.meet()
    assert clock.now < 180
    monkeypatch.setattr(liveness, "monotonic", clock := Clock(60.0))
    with pytest.raises(UserError, match="for 30 minutes"), alive.announced(False):
        pass  # rank 0 may come to it late: it writes checkpoints, and evaluates


def test_an_exception_in_the_work_ends_the_waiting_of_the_others_but_not_of_the_next_work(store: dist.Store) -> None:
    failing, other = Liveness(store, 2), Liveness(store, 2)
    with pytest.raises(UserError, match="its disk is full"), failing.working():
        raise UserError("its disk is full")
    with other.working():
        pass
    with pytest.raises(UserError, match="Another process has ended: see its message"):
        other.meet()

    # A script that has caught both goes on.
    def work_and_meet(process: Liveness, seconds: float) -> None:
        with process.working():
            time.sleep(seconds)
        process.meet()

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(work_and_meet, failing, 0.1), pool.submit(work_and_meet, other, 0.0)]:
            each.result(60)


def test_each_number_is_counted_once_and_each_count_begins_at_zero(store: dist.Store) -> None:
    pair = Liveness(store, 2), Liveness(store, 2)
    for _ in range(2):
        counts = [each.counter() for each in pair]
        assert [counts[0](), counts[1](), counts[0](), counts[1]()] == [0, 1, 2, 3]


def test_other_processes_come_to_the_operation_when_rank_0_has_left_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, broadcast = tmp_path / "done", dist.broadcast_object_list

    def broadcast_after_work(*args: object, **settings: object) -> None:
        assert done.exists()
        broadcast(*args, **settings)  # type: ignore[arg-type]

    def work() -> None:
        with joined_world("cpu") as world:
            monkeypatch.setattr(dist, "broadcast_object_list", broadcast_after_work)
            assert world.on_main(lambda: (time.sleep(0.3), done.touch(), 7)[-1]) == 7

    assert [ended.code for ended in start(work, tmp_path / "two", 2)()] == [0, 0]


def test_a_group_that_its_caller_left_and_joined_again_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Liveness, "of_group", lambda rank, size, broadcast: Liveness(dist.HashStore(), size))
    found = []
    for _ in range(2):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            found += [distributed._liveness(torch.device("cpu")) for _ in range(2)]
        finally:
            dist.destroy_process_group()
    assert found[0] is found[1] is not found[2]
