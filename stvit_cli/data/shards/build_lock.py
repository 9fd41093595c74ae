"""One process makes a file, the others wait for it: on one machine or on many that share a file system. Imports no torch.

The lock is the system's on ``FILE.lock`` (``flock``), which dies with its process: whoever waits takes it over from a builder
that was killed. Where the file system has no locks, the lock is a file that exists, whose time its holder renews; one that was
not renewed for `STALE_S` is taken over. Two builders at once would do no harm: the file is renamed into its place.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stvit_cli.utils import file_lock
from stvit_cli.utils.files import CLOSE_ON_EXEC

STALE_S = 60.0
RENEWED_S = 5.0
LONGEST_WAIT_S = 0.5
"""Between two attempts of a process that waits."""


@contextmanager
def building(path: Path, is_ready: Callable[[], bool], waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the right to build ``path``, once nobody else has it or the file is there.

    Args:
        path: of the file to build; its folder exists.
        is_ready: says whether the file is there, from another process.
        waiting: called once, where another process builds.

    Yields:
        True: build it. False: it is ready.

    Raises:
        OSError: the lock file cannot be made.
    """
    lock = path.with_name(f"{path.name}.lock")
    delay, said = 0.01, False
    while True:
        release = _acquire(lock)
        if release is not None:
            try:
                yield not is_ready()
            finally:
                release()
            return
        if is_ready():
            yield False
            return
        if not said:
            said = True
            waiting()
        time.sleep(delay * (0.5 + secrets.randbelow(1000) / 1000))  # not all of 512 at once
        delay = min(2 * delay, LONGEST_WAIT_S)


def _acquire(lock: Path) -> Callable[[], None] | None:
    """Return what frees the lock, None where another process holds it."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | CLOSE_ON_EXEC, 0o666)
    try:
        is_locked = file_lock.lock(handle)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            return None
        raise
    if not is_locked:
        os.close(handle)
        return _acquire_by_existence(lock.with_name(f"{lock.name}ed"))

    def release() -> None:
        # The file stays: removing it would let one process lock the old file and another the new one.
        os.close(handle)

    return release


def _acquire_by_existence(lock: Path) -> Callable[[], None] | None:
    name = secrets.token_hex(8).encode()
    try:
        handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CLOSE_ON_EXEC, 0o666)
    except FileExistsError:
        with contextlib.suppress(OSError):  # gone, or open elsewhere, which Windows does not rename
            if time.time() - lock.stat().st_mtime > STALE_S:
                aside = lock.with_name(f"{lock.name}.{secrets.token_hex(4)}")
                lock.rename(aside)  # one of several succeeds
                aside.unlink()
        return None
    os.write(handle, name)
    os.close(handle)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEWED_S):
            with contextlib.suppress(OSError):
                os.utime(lock)

    threading.Thread(target=renew, name="index lock", daemon=True).start()

    def release() -> None:
        done.set()
        with contextlib.suppress(OSError):
            if lock.read_bytes() == name:
                lock.unlink()

    return release
