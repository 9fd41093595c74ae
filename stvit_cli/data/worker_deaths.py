"""Deaths of a loader's workers, raised where the loader is asked for a batch and nowhere else.

Torch's DataLoader raises them from a handler of SIGCHLD, in whatever the main thread does at that moment: writing a file, waiting
for a lock. While a loader here is iterated over, `_handle` calls that handler and lets it raise within `deaths_raised` alone.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from stvit_cli.errors import UserError
from stvit_cli.utils.troubleshooting import see


class DeadWorkerError(UserError):
    """A worker was ended from outside, as by a system that is out of memory."""


def explain_dead_worker(error: BaseException) -> DeadWorkerError | None:
    """Return the message for the user if torch's error is about a dead worker, otherwise None."""
    message = str(error).strip()
    if isinstance(error, (ConnectionError, EOFError)) and not message.startswith("Caught"):  # it died as it handed over a batch
        first = f"A DataLoader worker ended while it was read from ({type(error).__name__})"
    elif isinstance(error, RuntimeError) and message.startswith("DataLoader worker (pid"):
        first = message.splitlines()[0].rstrip(". ")
    else:
        return None
    return _dead_worker(first)


def _dead_worker(first: str) -> DeadWorkerError:
    return DeadWorkerError(
        f"{first}.\n"
        "A loader process was ended from outside, mostly because memory or shared memory (/dev/shm) ran out.\n"
        "Lower data.num_workers (0 loads in the main process) or train.batch_size_per_device, or free memory.\n"
        f"{see('shared-memory')}"
    )


_torch_handler: Callable[[int, FrameType | None], Any] | None = None
_num_kept = 0
_is_waiting = False


@contextmanager
def deaths_kept_back() -> Iterator[None]:
    """Keep deaths of workers from being raised in a ``with`` block, from its first `deaths_raised` on, except within those.

    Loaders may be iterated over side by side and end in any order. Outside the main thread Python allows no handlers; nothing is
    changed there.
    """
    global _num_kept
    _num_kept += 1
    try:
        yield
    finally:
        _num_kept -= 1
        if not _num_kept:
            _hand_back()


@contextmanager
def deaths_raised(iterator: object) -> Iterator[None]:
    """Raise in a ``with`` block that a worker dies in it, or that one of an iterator's has died before.

    Args:
        iterator: of a ``torch.utils.data.DataLoader``.

    Raises:
        DeadWorkerError: one of the iterator's had died before.
        RuntimeError: torch's, of one that dies in the block; `explain_dead_worker` knows it.
    """
    global _is_waiting
    if not _in_main_thread():
        _require_alive(iterator)
        yield
        return
    _take_over()  # torch sets its handler when it starts its first workers
    _is_waiting = True  # first, so that none dies between the two
    try:
        _require_alive(iterator)
        yield
    finally:
        _is_waiting = False


def _require_alive(iterator: object) -> None:
    # Torch would find out in five seconds, unless the worker died while it wrote to the queue: then it would wait for ever.
    for process in getattr(iterator, "_workers", ()):
        if process.exitcode is not None:
            code = process.exitcode
            how = f"killed by signal: {-code}" if code < 0 else f"exited unexpectedly with exit code {code}"
            raise _dead_worker(f"DataLoader worker (pid {process.pid}) {how}")


def _handle(number: int, frame: FrameType | None) -> None:
    try:
        if _torch_handler is not None:
            _torch_handler(number, frame)
    except RuntimeError as error:
        if _is_waiting or not _num_kept or explain_dead_worker(error) is None:
            raise


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _take_over() -> None:
    global _torch_handler
    if not hasattr(signal, "SIGCHLD"):  # Windows
        return
    current = signal.getsignal(signal.SIGCHLD)
    if callable(current) and current is not _handle:
        _torch_handler = current
        signal.signal(signal.SIGCHLD, _handle)


def _hand_back() -> None:
    global _torch_handler
    if hasattr(signal, "SIGCHLD") and _in_main_thread() and signal.getsignal(signal.SIGCHLD) is _handle:
        signal.signal(signal.SIGCHLD, _torch_handler or signal.SIG_DFL)
        _torch_handler = None
