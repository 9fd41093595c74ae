"""A worker that dies is raised by the loader that lost it, and never in what the main thread does meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.utils.data import Dataset, default_collate

from stvit_cli.data import worker_deaths
from stvit_cli.data.loader import Loader, build_eval_loader
from stvit_cli.data.worker_deaths import DeadWorkerError, explain_dead_worker


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        return index


def numbers() -> Loader:
    return build_eval_loader(Numbers(), default_collate, batch_size=4, num_workers=1)


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[list[int]]:
    """Set a handler of the user's, which must be back at the end; return the signals that it has heard."""
    heard: list[int] = []

    def listen(number: int, frame: object) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGCHLD, listen)
    yield heard
    assert worker_deaths._num_kept == 0
    assert signal.getsignal(signal.SIGCHLD) is not worker_deaths._handle
    signal.signal(signal.SIGCHLD, before)


def first_batch() -> tuple[Iterator[Any], int]:
    """Return an iterator whose first batch is taken, and the process of its worker."""
    others = {child.pid for child in multiprocessing.active_children()}
    batches = iter(numbers())
    assert next(batches).tolist() == [0, 1, 2, 3]
    (worker,) = {child.pid for child in multiprocessing.active_children()} - others
    assert worker is not None
    return batches, worker


def kill(worker: int) -> None:
    """Kill a worker; torch's handler of the signal that says so, which would raise, runs before this returns."""
    os.kill(worker, signal.SIGKILL)
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)  # for torch and the loader to see
    for _ in range(10):
        time.sleep(0.001)


def test_a_death_waits_until_the_loader_is_asked() -> None:
    for _ in range(2):  # torch sets its handler once, for the first loader of a process
        batches, worker = first_batch()
        kill(worker)
        with pytest.raises(DeadWorkerError, match=rf"worker \(pid {worker}\) killed by signal: 9.*"):
            list(batches)


def test_torch_alone_would_raise_it_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    monkeypatch.setattr(worker_deaths, "_take_over", lambda: None)
    batches, worker = first_batch()
    with pytest.raises(RuntimeError, match="is killed by signal"):
        kill(worker)
    with pytest.raises(DeadWorkerError):
        list(batches)


def test_a_death_while_the_loader_waits_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()

    def stuck(self: Numbers, index: int) -> int:
        if index >= 8 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    monkeypatch.setattr(Numbers, "__getitem__", stuck)
    with pytest.raises(DeadWorkerError):
        list(numbers())


def test_of_loaders_side_by_side_the_right_one_raises_it() -> None:
    outer, worker = first_batch()
    kill(worker)
    assert [int(number) for batch in numbers() for number in batch] == list(range(40))
    with pytest.raises(DeadWorkerError, match=str(worker)):
        list(outer)


def test_they_may_end_in_any_order() -> None:
    (first, _), (second, worker) = first_batch(), first_batch()
    assert len(list(first)) == 9
    kill(worker)
    with pytest.raises(DeadWorkerError):
        list(second)


def test_in_another_thread_it_is_raised_too() -> None:
    def run() -> None:
        batches, worker = first_batch()
        kill(worker)
        list(batches)

    with ThreadPoolExecutor(1) as pool, pytest.raises(DeadWorkerError, match="killed by signal: 9"):
        pool.submit(run).result()


def test_other_children_are_the_callers(own_handler: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    batches, _ = first_batch()
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(batches)) == 9
    assert signal.SIGCHLD in own_handler


def test_a_loader_without_workers_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Numbers, index: int) -> int:
        raise ConnectionResetError("the storage has gone")

    monkeypatch.setattr(Numbers, "__getitem__", fail)
    with pytest.raises(ConnectionResetError, match="the storage has gone"):
        list(build_eval_loader(Numbers(), default_collate, batch_size=4, num_workers=0))


def test_only_torchs_words_are_explained() -> None:
    assert explain_dead_worker(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert explain_dead_worker(ValueError("DataLoader worker (pid 1) is killed by signal: Killed.")) is None
    explained = explain_dead_worker(RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. "))
    assert str(explained).startswith("DataLoader worker (pid 1) is killed by signal: Killed.\n")
