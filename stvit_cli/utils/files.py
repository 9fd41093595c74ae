"""Write files atomically: after a power cut, a kill or a full disk there is the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stvit_cli.errors import UserError, WriteError
from stvit_cli.utils.text import did_you_mean

CLOSE_ON_EXEC: int = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Flags of `os.open` beside those for reading or writing: not inherited by other programs, and on Windows not as text."""

_seeking = threading.Lock()

TRIAL_BYTES = 256
"""Written to find out whether there is room at all: a full disk still makes empty files."""


def nearest_sibling(path: Path, is_choice: Callable[[Path], bool] = lambda entry: True) -> str:
    """Return `` Did you mean 'x'?`` for what lies beside a missing ``path`` under the closest name, "" where nothing is close.

    Args:
        path: which is not there.
        is_choice: which entries of its folder can be meant.
    """
    folder = path.parent
    return did_you_mean(path.name, [entry.name for entry in folder.iterdir() if is_choice(entry)] if folder.is_dir() else [])


def cache_dir() -> Path:
    """Return the folder of everything that can be made again: ``$XDG_CACHE_HOME/stvit``, else ``~/.cache/stvit``.

    The folder may not exist yet.

    Raises:
        OSError: there is neither ``XDG_CACHE_HOME`` nor a home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "stvit"
    try:
        return Path.home() / ".cache" / "stvit"
    except RuntimeError as error:  # no HOME, and no entry for this user in the system's database
        raise FileNotFoundError(2, "there is no home directory; set XDG_CACHE_HOME", "~") from error


LEFTOVER = re.compile(r"\.(.+\.)?[0-9a-f]{8}\.part|\..+\.writing")
"""Names of unfinished files (see `replacing`) and folders that a killed process has left."""

INTACT = "What was saved before is intact. Make room, or make the directory writable."


@contextmanager
def writing(path: Path, advice: str = INTACT) -> Iterator[None]:
    """Turn a failed write into a WriteError that names ``path``, with a line of ``advice`` below it."""
    try:
        yield
    except Exception as error:
        # By its name: the ground floor does not import safetensors, whose writer reports a full disk as an error of its own.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        raise WriteError("\n".join([f"{path} cannot be written: {reason_of(error)}.", *([advice] if advice else [])])) from error


def reason_of(error: Exception) -> str:
    """Return what the system says of a failed operation on a file."""
    return getattr(error, "strerror", None) or str(error).rstrip(".")


def require_writable_file(path: Path) -> None:
    """Find out whether ``path`` can be written, by trying; see `try_file`. Raises UserError where it cannot."""
    with writing(path, advice=""):
        try_file(path)


def require_new_file(path: Path, *endings: str) -> None:
    """Raise UserError where ``path`` has another ending, exists already or cannot be written: before the work, not after it."""
    if path.suffix not in endings:
        raise UserError(f"{path}: expected a name ending in {' or '.join(endings)}.")
    if os.path.lexists(path):
        raise UserError(f"{path} exists; choose another name, or remove it first.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}.")
    require_writable_file(path)


def try_file(path: Path) -> None:
    """Try whether ``path`` can be written: before the work whose result it is to hold, not after it.

    An existing file is left as it is; a new one, made for the trial, is removed. Asking for the permission is not enough: a
    read-only disk, a full one, or root answers otherwise than it acts.

    Raises:
        OSError: it cannot be written.
    """
    with _as_os_error():
        target = Path(os.path.realpath(path))
        if not target.exists():
            with target.open("xb") as file:
                try:
                    file.write(bytes(TRIAL_BYTES))
                    file.flush()
                finally:
                    target.unlink()
        elif target.is_file() or target.is_dir():  # not a pipe, which would wait for its reader
            target.open("ab").close()


def require_writable_folder(path: Path) -> None:
    """Find out, by trying, whether files can be written into ``path``, which need not exist; what is made for it is removed.

    Raises:
        UserError: they cannot.
    """
    made: list[Path] = []
    with writing(path, advice=""), _as_os_error():
        try:
            for folder in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
                folder.mkdir()
                made.append(folder)
            try_file(path / f".{secrets.token_hex(4)}.part")
        finally:
            for folder in reversed(made):
                with suppress(OSError):
                    folder.rmdir()


@contextmanager
def _as_os_error() -> Iterator[None]:
    """A path with a NUL is a ValueError to Python, and no different from other names that cannot be."""
    try:
        yield
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of an empty file beside ``path`` to write to; on success it is flushed and renamed to ``path``.

    The name is unique, so that processes that write the same file at once do not meet. Its mode is the user's default.

    Raises:
        OSError: the file cannot be written; an older ``path`` is intact and nothing is left beside it.
    """
    # Letters beyond ASCII may need several bytes, and a name may have 255.
    temporary = path.with_name(f".{path.name.encode()[:100].decode(errors='ignore')}.{secrets.token_hex(4)}.part")
    try:
        temporary.open("xb").close()
        yield temporary
        # Windows flushes only what may be written.
        with temporary.open("r+b" if sys.platform == "win32" else "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically. Raises OSError as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left in ``folder`` of atomic writes; no process may be writing there.

    Args:
        folder: the folder, not searched below; nothing happens if it does not exist.

    Raises:
        OSError: something cannot be removed.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if LEFTOVER.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk (a renamed file is not there before that).

    Windows opens no directories; there the file system's own journal has to do.
    """
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_at(handle: int, length: int, start: int) -> bytes:
    """Read from a position of an open file, whatever other threads read from it; fewer bytes at its end.

    Args:
        handle: what `os.open` returned.
        length: number of bytes.
        start: position of the first byte.
    """
    if hasattr(os, "pread"):
        return os.pread(handle, length, start)
    with _seeking:  # on Windows: the position belongs to the file, not to its reader
        os.lseek(handle, start, os.SEEK_SET)
        return os.read(handle, length)
