"""Write files atomically: after a power cut, a kill or a full disk there is the old file or the new one, never half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stvit_cli.errors import WriteError


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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into a WriteError that names ``path``."""
    try:
        yield
    except Exception as error:
        # By its name: the ground floor does not import safetensors, whose writer reports a full disk as an error of its own.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise WriteError(
            f"{path} cannot be written: {reason}.\nWhat was saved before is intact. Make room, or make the directory writable."
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of an empty file beside ``path`` to write to; on success it is flushed and renamed to ``path``.

    The name is unique, so that processes that write the same file at once do not meet. Its mode is the user's default.

    Raises:
        OSError: the file cannot be written; an older ``path`` is intact and nothing is left beside it.
    """
    # Letters beyond ASCII may need several bytes, and a name may have 255.
    aside = path.with_name(f".{path.name.encode()[:100].decode(errors='ignore')}.{secrets.token_hex(4)}.part")
    try:
        aside.open("xb").close()
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically. Raises OSError as `replacing` does."""
    with replacing(path) as aside:
        aside.write_bytes(data)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk (a renamed file is not there before that)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
