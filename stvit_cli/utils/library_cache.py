"""The compiled libraries in the user's cache, and which of them may be loaded: undamaged, and not writable by others.

Loading a library runs it. A truncated one ends the process by SIGBUS, so the checksum in the file beside it is compared first.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stvit_cli.utils.files import cache_dir, replace_file, replacing


class LibraryUnavailableError(RuntimeError):
    """There is no compiled library on this machine; the message gives the reason in one line."""


STALE_S = 3600
"""Age in seconds after which a partial file is removed: its process has ended, as compiling takes less."""


def folder() -> Path:
    """Return the folder of the compiled libraries, created if it is missing.

    Raises:
        LibraryUnavailableError: it cannot be created, or others may write to it.
    """
    try:
        path = cache_dir() / "kernels"
        if not path.is_dir():  # with a mode, as many umasks let the group write
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise _not_writable(error) from error
    for checked in (path.parent, path):
        reason = untrusted(checked, group_may_write=checked != path)
        if reason is not None:
            raise LibraryUnavailableError(f"{checked} {reason}")
    return path


def untrusted(path: Path, *, group_may_write: bool = False) -> str | None:
    """Return why code in a file or folder must not be run, and how to change that; None if it may be run.

    Args:
        path: the file or folder.
        group_may_write: allow writing by the group.
    """
    if not hasattr(os, "geteuid"):
        return None
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        return "belongs to another user, whose code is not run; remove it, or set XDG_CACHE_HOME to a folder of your own"
    writable = stat.S_IWOTH if group_may_write else stat.S_IWOTH | stat.S_IWGRP
    if status.st_mode & writable and not status.st_mode & stat.S_ISVTX:
        return f"can be written by other users, whose code is not run; run: chmod go-w '{path}'"
    return None


def damage(library: Path) -> str | None:
    """Return why a library must be compiled again (writable by others, no checksum, or another one); None if it may be loaded."""
    if untrusted(library) is not None:
        return "can be written by other users"
    try:
        expected = _checksum_file(library).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return "has no checksum"
    return None if expected == _checksum(library) else "is damaged"


@contextmanager
def storing(library: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to compile to. On success it is moved to ``library``, with its checksum beside it.

    Raises:
        LibraryUnavailableError: the folder cannot be written.
    """
    try:
        _remove_stale(library.parent)
        with replacing(library) as temporary:
            yield temporary
            temporary.chmod(0o755)
            checksum = _checksum(temporary)
        replace_file(_checksum_file(library), f"{checksum}\n".encode())
    except OSError as error:
        raise _not_writable(error) from error


def require_executable(path: Path) -> None:
    """Raise LibraryUnavailableError where no library of a folder can be loaded, as its file system is mounted with noexec."""
    if sys.platform == "linux" and os.statvfs(path).f_flag & os.ST_NOEXEC:
        raise LibraryUnavailableError(
            f"{path} is on a file system that runs no programs (noexec); set XDG_CACHE_HOME to a folder on another one"
        )


def _not_writable(error: OSError) -> LibraryUnavailableError:
    return LibraryUnavailableError(f"{error.filename or 'the cache'} cannot be written ({error.strerror or error})")


def _checksum_file(library: Path) -> Path:
    return library.with_name(f"{library.name}.blake2b")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _remove_stale(path: Path) -> None:
    """Remove the partial files of processes that were killed while they compiled."""
    for part in path.glob(".*.part"):
        if time.time() - part.stat().st_mtime > STALE_S:
            part.unlink(missing_ok=True)
