"""A run directory belongs to one run at a time: a lock that dies with its process, however that ends. Imports no torch.

``.lock`` in the run directory says who holds it; what counts is the system's lock on that file (``flock``), on NFS as far as the
server takes part. It is removed at the end of the run; one that a killed run has left stands in nobody's way.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Self

from stvit_cli.errors import UserError
from stvit_cli.utils.file_lock import lock
from stvit_cli.utils.files import CLOSE_ON_EXEC, writing
from stvit_cli.utils.text import printable

LOCK = ".lock"


class RunLock:
    """The lock on a run directory, held from the call of ``acquire`` to that of ``release``.

    Attributes:
        is_shared: the file system has no locks, so that nothing keeps a second run away.
    """

    def __init__(self, run_dir: Path, handle: int, *, is_shared: bool) -> None:
        self.run_dir, self.is_shared = run_dir, is_shared
        self._path, self._handle = run_dir / LOCK, handle
        # A forked loader worker outlives a killed run by seconds, and must not hold its lock for that long.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._close)

    @classmethod
    def acquire(cls, run_dir: Path) -> Self:
        """Lock a directory that exists.

        Raises:
            UserError: another process runs in it, or the lock file cannot be written.
        """
        path = run_dir / LOCK
        while True:
            with writing(path):
                handle = os.open(path, os.O_RDWR | os.O_CREAT | CLOSE_ON_EXEC, 0o666)
            try:
                is_shared = not lock(handle)
                if _is_at(handle, path):
                    with writing(path):
                        os.truncate(handle, 0)
                        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
                    return cls(run_dir, handle, is_shared=is_shared)
            except BlockingIOError:
                os.close(handle)
                raise UserError(_in_use(run_dir)) from None
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # its holder has just removed it: lock the next one

    def require_held(self) -> None:
        """Raise UserError where the directory is no longer that of this run: removed, renamed or replaced by another run."""
        try:
            if _is_at(self._handle, self._path):
                return
        except OSError:  # of a network file system for a while: what is written there next says more
            return
        raise UserError(
            f"{self.run_dir} was removed, renamed or replaced during the run (its file {LOCK} is gone); stopped.\n"
            "Where it was only renamed, resume it under its new name: stvit train --resume DIR"
        )

    def release(self) -> None:
        """Remove the file, where it is still there, and free the lock."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                if _is_at(self._handle, self._path):
                    self._path.unlink()
        self._close()

    def _close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            with contextlib.suppress(OSError):
                os.close(handle)


def require_unlocked(run_dir: Path) -> None:
    """Raise UserError if another process holds the lock. A check before the work; it takes no lock."""
    try:
        handle = os.open(run_dir / LOCK, os.O_RDWR | CLOSE_ON_EXEC)
    except OSError:  # no lock, or not for us to open: to be found when the run starts
        return
    try:
        lock(handle)
    except BlockingIOError:
        raise UserError(_in_use(run_dir)) from None
    finally:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _in_use(run_dir: Path) -> str:
    holder = ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((run_dir / LOCK).read_bytes())
        holder = f": process {int(content['pid'])} on {printable(str(content['host']))}"
    return (
        f"{run_dir} is in use by another run{holder}.\n"
        "Wait until it ends, or stop it (Ctrl-C or SIGTERM saves its state); or give another directory: output=DIR"
    )
