"""Ranges of bytes of shards, local or behind fsspec. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path

from stvit_cli.data.shards.build_lock import building
from stvit_cli.data.shards.storage import WEB, ShardFile, file_system, is_remote, local_stamp, remote, stamps_of
from stvit_cli.errors import UserError
from stvit_cli.utils.files import CLOSE_ON_EXEC, cache_dir, nearest_sibling, read_at, reason_of, replacing, writing
from stvit_cli.utils.text import printable

MAX_OPEN = 128
"""Files that a process keeps open; a shard beyond them is opened again when it is read."""


class _Handle:
    """An open file, closed when its last reader is done with it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | CLOSE_ON_EXEC)

    def stamp(self) -> str:
        """Return the time of the last change of the open file, as `ShardFile.stamp` has it."""
        return local_stamp(os.fstat(self.number))

    def __del__(self) -> None:
        number, self.number = getattr(self, "number", -1), -1
        if number >= 0:
            os.close(number)


def require_unchanged(file: ShardFile) -> None:
    """Compare a remote shard with what was listed.

    Args:
        file: as it was listed. A stamp that the server does not give any more is not compared, the size always is.

    Raises:
        UserError: it is another one, or cannot be read.
    """
    files, inside = file_system(file.path)
    files.invalidate_cache(inside)  # of listings, which some file systems answer from
    info = remote(file.path, lambda: files.info(inside))
    stamps = stamps_of(info)
    if info.get("size") not in (None, file.size) or (file.stamp and stamps and file.stamp not in stamps):
        raise changed_error(file.path)


def changed_error(path: str) -> UserError:
    """Return the error of a shard that is another one than when it was listed."""
    return UserError(
        f"{printable(path)} was changed or replaced since its index was made, so that positions in it are others. "
        "Start again: the index is then made from what is there."
    )


class Reader:
    """Ranges of shards, read by any number of threads and processes: positions are given, so that handles share no state.

    Open files are kept by path and stamp, so that a shard that was replaced is not read by the positions of the earlier one. A
    remote shard is compared with what was listed before a process reads it first, and again where it ends early.
    """

    def __init__(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()
        self._files: OrderedDict[tuple[str, str], _Handle] = OrderedDict()
        self._hosts: dict[str, bool] = {}
        self._copies: dict[tuple[str, str], str] = {}
        self._compared: set[tuple[int, str, str]] = set()

    def __reduce__(self) -> tuple[type[Reader], tuple[()]]:
        return Reader, ()

    def read(self, file: ShardFile, start: int, length: int) -> bytes:
        """Return the bytes of a range, fewer where the file ends.

        Args:
            file: the shard, as it was listed.
            start: position of the first byte.
            length: number of bytes.

        Raises:
            UserError: the file cannot be read, or is another one than the one that was listed.
        """
        path, stamp = file.path, file.stamp
        if is_remote(path):
            if self._has_ranges(path):
                return self._range(file, start, length)
            path, stamp = self._copy(file), ""
        try:
            handle = self._open(path, stamp)
            if stamp and handle.stamp() != stamp:
                raise changed_error(path)
            content = read_at(handle.number, length, start)
            while len(content) < length:
                more = read_at(handle.number, length - len(content), start + len(content))
                if not more:
                    break
                content += more
            return content
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise UserError(f"{printable(path)}: there is no such shard.{nearest_sibling(Path(path))}") from None
            raise UserError(f"{printable(path)} cannot be read: {reason_of(error)}.") from None

    def _range(self, file: ShardFile, start: int, length: int) -> bytes:
        """Return a range of a remote shard; see `read`."""
        files, inside = file_system(file.path)
        key = (os.getpid(), file.path, file.stamp)
        if key not in self._compared:
            require_unchanged(file)
            self._compared.add(key)
        try:
            sent: bytes = remote(file.path, lambda: files.cat_file(inside, start=start, end=start + length))
        except UserError:
            require_unchanged(file)  # a range beyond the end is an error of some servers
            raise
        if len(sent) < min(length, file.size - start):
            require_unchanged(file)
        return sent

    def _has_ranges(self, url: str) -> bool:
        """Return whether a server sends ranges, asked once for each host: Python's own, for one, sends complete files."""
        host = url[: url.find("/", url.find("://") + 3)]
        if host not in self._hosts:
            files, inside = file_system(url)
            is_web = url.startswith(WEB)
            self._hosts[host] = not is_web or len(remote(url, lambda: files.cat_file(inside, start=0, end=1))) <= 1
        return self._hosts[host]

    def _copy(self, file: ShardFile) -> str:
        """Return a local copy of a file; of all processes that share the cache folder one makes it."""
        url, key = file.path, (file.path, file.stamp)
        if key not in self._copies:
            files, inside = file_system(url)
            require_unchanged(file)
            digest = hashlib.blake2b(f"{url} {file.size} {file.stamp}".encode(), digest_size=12).hexdigest()
            path = cache_dir() / f"shard-{digest}{Path(file.name).suffix}"
            with writing(path, "Make room there, or set XDG_CACHE_HOME to another folder."):
                path.parent.mkdir(parents=True, exist_ok=True)
                with building(path, path.is_file) as is_mine:
                    if is_mine:
                        with replacing(path) as temporary:
                            remote(url, lambda: files.get_file(inside, str(temporary)))
            self._copies[key] = str(path)
        return self._copies[key]

    def _open(self, path: str, stamp: str) -> _Handle:
        """Return an open file. One that another thread takes out of the table closes when its last reader is done."""
        key = (path, stamp)
        with self._lock:
            if self._process != os.getpid():
                self._files, self._process = OrderedDict(), os.getpid()
            file = self._files.get(key)
            if file is None:
                file = self._files[key] = _Handle(path)
            self._files.move_to_end(key)
            if len(self._files) > MAX_OPEN:
                self._files.popitem(last=False)
            return file
