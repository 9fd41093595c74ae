"""Waiting for other processes as long as one of them works, however long that takes.

Collective operations end a process that has waited for `PATIENCE`. Where a process may work for longer before it comes to one
(listing millions of images, a file of predictions of large images), the others wait here first: while a process works, a thread
of it counts in a store on rank 0, and they give up only when nobody has counted for so long.

Each piece of work has a number, which is the same on all processes, and the store's keys end in it: what one piece of work left
there says nothing of the next one.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from time import monotonic

import torch.distributed as dist

from stvit_cli.errors import UserError

PATIENCE = timedelta(minutes=30)
"""After which a process counts as hanging: longer than writing a checkpoint or a slow evaluation takes."""
MEETING_PATIENCE = timedelta(minutes=2)
"""The same in `Liveness.meet`: a process that has left its work, or comes to it, does nothing slow before the next count."""
BEAT_S = 10.0
"""Seconds between two counts of a process that works."""
SLICE = timedelta(seconds=2)
"""Of waiting, between two looks at the count; signals are answered after it."""

_BEATS = "beats"


class Liveness:
    """What the processes of a group tell each other beside collective operations. All call its methods in the same order.

    Args:
        store: of the group, on rank 0.
        size: number of processes.
    """

    def __init__(self, store: dist.Store, size: int) -> None:
        self._store, self._size = store, size
        self._calls = itertools.count()
        self._work = -1

    @classmethod
    def of_group(cls, rank: int, size: int, broadcast: Callable[[int], int]) -> Liveness:
        """Make the store; a collective operation of the group.

        Args:
            rank: of this process.
            size: number of processes.
            broadcast: returns rank 0's value on all processes.

        Raises:
            UserError: rank 0 cannot be reached.
        """
        host = os.environ["MASTER_ADDR"]  # of rank 0
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if rank == 0 else None
        port = broadcast(store.port if store is not None else 0)
        try:
            return cls(store or dist.TCPStore(host, port, is_master=False), size)
        except dist.DistError as error:
            raise UserError(f"Rank 0 cannot be reached at {host}:{port}, or has ended: see its message.") from error

    def counter(self) -> Callable[[], int]:
        """Return a function that counts 0, 1, 2, ... across all processes: each number is returned once, to whoever asks next."""
        key = f"count/{next(self._calls)}"

        def count() -> int:
            try:
                return int(self._store.add(key, 1)) - 1
            except dist.DistError as error:
                raise UserError("Rank 0 cannot be reached, or has ended: see its message.") from error

        return count

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let the others wait in `meet` while the block runs; an exception in the block ends their waiting.

        All enter it, and then come to `meet`, unless an exception has ended the block.
        """
        self._work = next(self._calls)
        try:
            with self._beating():
                yield
        except BaseException:
            with suppress(dist.DistError):  # rank 0 has ended: the others notice
                self._store.add(f"failed/{self._work}", 1)
            raise

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Count in the store while the block runs."""
        done = threading.Event()

        def beat() -> None:
            with suppress(dist.DistError):  # rank 0 has ended: what comes next says so
                while not done.wait(BEAT_S):
                    self._store.add(_BEATS, 1)

        thread = threading.Thread(target=beat, name="liveness", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @contextmanager
    def announced(self, is_mine: bool) -> Iterator[None]:
        """Run the block on one process; on the others, wait before it until that process has left it.

        Args:
            is_mine: whether this process is the one.
        """
        number = next(self._calls)
        if not is_mine:
            with suppress(dist.DistNetworkError):  # the collective operation that follows says more
                self._wait("done", number, PATIENCE)
            yield
            return
        try:
            with self._beating():
                yield
        finally:
            self._store.set(f"done/{number}", "")

    def meet(self) -> None:
        """Wait until all processes have left the block of `working`.

        Raises:
            UserError: one of them has ended, or nothing was heard of them for `MEETING_PATIENCE`.
        """
        try:
            if self._store.add(f"here/{self._work}", 1) == self._size:
                self._store.set(f"all/{self._work}", "")
            self._wait("all", self._work, MEETING_PATIENCE)
        except dist.DistNetworkError as error:
            raise UserError("Another process has ended: see its message. The same command resumes.") from error

    def _wait(self, what: str, number: int, patience: timedelta) -> None:
        beats, since = -1, monotonic()
        while True:
            try:
                self._store.wait([f"{what}/{number}"], SLICE)
                return
            except dist.DistNetworkError:
                raise
            except dist.DistStoreError:  # not yet
                pass
            if self._store.add(f"failed/{number}", 0):
                raise UserError("Another process has ended: see its message. The same command resumes.")
            now = self._store.add(_BEATS, 0)
            if now != beats:
                beats, since = now, monotonic()
            elif monotonic() - since > patience.total_seconds():
                raise UserError(
                    f"Nothing was heard of the other processes for {patience.total_seconds() / 60:.0f} minutes: one of them has "
                    "ended or hangs. The same command resumes."
                )
