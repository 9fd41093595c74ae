"""Shards on a local file system or behind fsspec (s3, gs, http): which there are, and ranges of their bytes. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from stvit_cli.data.file_listing import is_left_out
from stvit_cli.data.shards.build_lock import building
from stvit_cli.errors import UserError
from stvit_cli.utils.files import CLOSE_ON_EXEC, cache_dir, nearest_sibling, read_at, reason_of, replacing, writing
from stvit_cli.utils.text import first_line, printable, shortened

TAR, PARQUET = ".tar", ".parquet"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_OPEN = 128
"""Files that a process keeps open; a shard beyond them is opened again when it is read."""
MAX_SHARDS = 1_000_000
THREADS = 16
STAMPS = ("ETag", "etag", "generation", "LastModified", "last_modified", "Last-Modified", "Content-MD5", "updated", "mtime")
"""What fsspec's file systems call the version of a file or the time of its last change; the first one counts."""
ATTEMPTS = 4
"""Reads of a remote range before it counts as failed; the waits between them are 0.5, 1 and 2 seconds."""

T = TypeVar("T")


@dataclass(frozen=True)
class ShardFile:
    """One shard.

    Attributes:
        path: a local path, or a URL that fsspec opens.
        name: its path below the folder of the data set, or its file name.
        size: in bytes.
        stamp: changes when the file does: the time of its last change, or what the store calls its version.
    """

    path: str
    name: str
    size: int
    stamp: str


def is_remote(path: str) -> bool:
    """Return whether a path is a URL of fsspec.

    >>> is_remote("s3://bucket/a.tar"), is_remote("/data/a.tar")
    (True, False)
    """
    return "://" in path


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a brace pattern stands for, as WebDataset writes them; ``::`` joins several patterns.

    Args:
        pattern: with numbers, ``{0000..1023}``, or alternatives, ``{train,val}``.

    Raises:
        UserError: it stands for more than a million names.

    Example:
        >>> expand_braces("a-{08..11}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'a-11.tar']
        >>> expand_braces("{a,b}.tar::c.tar")
        ['a.tar', 'b.tar', 'c.tar']
    """
    found: list[str] = []
    for part in pattern.split("::"):
        texts = re.split(r"\{([^{}]*)\}", part)
        choices = [_choices(text) if number % 2 else [text] for number, text in enumerate(texts)]
        total = 1
        for choice in choices:
            total *= len(choice)
        if total > MAX_SHARDS:
            raise UserError(f"data.dir: {printable(shortened(part))} stands for {total} names, more than {MAX_SHARDS}.")
        found += ["".join(names) for names in product(*choices)]
    return found


def _choices(text: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if numbers is None:
        return text.split(",") if "," in text else ["{" + text + "}"]
    first, last = numbers[1], numbers[2]
    if int(last) < int(first) or int(last) - int(first) > MAX_SHARDS:
        raise UserError(f"data.dir: {{{text}}}: expected a range such as {{0000..1023}}, of at most {MAX_SHARDS} names.")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def is_pattern(text: str) -> bool:
    """Return whether a text is a brace or glob pattern, or several of them.

    >>> is_pattern("a-{0..3}.tar"), is_pattern("data/"), is_pattern("a-*.tar")
    (True, False, True)
    """
    return any(mark in text for mark in ("{", "*", "?", "::"))


def list_shards(source: str | os.PathLike[str]) -> list[ShardFile]:
    """Return the shards of a source: sorted by name for a folder, in the order of a pattern otherwise.

    Args:
        source: ``data.dir``: a folder, whose folders are searched too; a shard; a brace or glob pattern; local, or a URL.

    Raises:
        UserError: there is nothing, a shard is missing, or shards are compressed and so have no random access.
    """
    text = os.fspath(source)
    if not is_pattern(text):
        files = _of_folder(text)
    else:
        names = expand_braces(text)
        paths = [path for name in names for path in (_glob(name) if re.search(r"[*?]", name) else [_user(name)])]
        with ThreadPoolExecutor(THREADS) as pool:
            files = _named_below_their_folder(list(pool.map(_file, paths)))
        path, count = Counter(file.path for file in files).most_common(1)[0] if files else ("", 0)
        if count > 1:
            raise UserError(f"data.dir: {printable(text)} names the shard {printable(path)} {count} times.")
    shards = [file for file in files if file.name.lower().endswith((TAR, PARQUET))]
    compressed = [file.name for file in files if file.name.lower().endswith(COMPRESSED)]
    if compressed:
        raise UserError(
            f"{printable(text)}: {printable(compressed[0])} is compressed, so its images cannot be read by position. Unpack it "
            "(gunzip); JPEG images in it hardly become larger."
        )
    if not shards:
        raise UserError(f"{printable(text)} has no shards; expected files that end in {TAR} (WebDataset's) or {PARQUET}.")
    return shards


def _named_below_their_folder(files: Sequence[ShardFile]) -> list[ShardFile]:
    """Return files with names that begin below the folder that all are in: ``train/0000.tar`` and ``val/0000.tar``."""
    folders = [file.path.split("/")[:-1] for file in files]
    depth = 0
    while folders and all(len(folder) > depth and folder[depth] == folders[0][depth] for folder in folders):
        depth += 1
    return [replace(file, name="/".join(file.path.split("/")[depth:])) for file in files]


def _user(path: str) -> str:
    return path if is_remote(path) else str(Path(path).expanduser())


def _of_folder(text: str) -> list[ShardFile]:
    if is_remote(text):
        return _of_remote_folder(text)
    root = Path(text).expanduser()
    if root.is_file():
        return [_file(str(root))]
    if not root.is_dir():
        raise UserError(f"data.dir: there is no file or folder {printable(str(root))}.{nearest_sibling(root)}")
    paths = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_left_out(name))
        paths += [os.path.join(folder, name) for name in names if not is_left_out(name) and _is_shard(name)]
        if len(Path(folder).relative_to(root).parts) >= 2:
            folders.clear()
    with ThreadPoolExecutor(THREADS) as pool:
        files = list(pool.map(lambda path: _file(path, root), paths))
    return sorted(files, key=lambda file: file.name)


def _is_shard(name: str) -> bool:
    return name.lower().endswith((TAR, PARQUET, *COMPRESSED))


def _glob(pattern: str) -> list[str]:
    if is_remote(pattern):
        files, path = file_system(pattern)
        return sorted(files.unstrip_protocol(found) for found in remote(pattern, lambda: files.glob(path)))
    local = Path(_user(pattern)).absolute()
    return sorted(str(found) for found in Path(local.anchor).glob(str(local.relative_to(local.anchor))))


def _file(path: str, root: Path | None = None) -> ShardFile:
    if is_remote(path):
        files, inside = file_system(path)
        return _remote_file(path, path.rpartition("/")[2], remote(path, lambda: files.info(inside)))
    try:
        stat = os.stat(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{printable(path)}: there is no such shard.{nearest_sibling(Path(path))}") from None
        raise UserError(f"{printable(path)} cannot be read: {reason_of(error)}.") from None
    name = Path(path).relative_to(root).as_posix() if root is not None else Path(path).name
    return ShardFile(str(Path(path).absolute()), name, stat.st_size, str(stat.st_mtime_ns))


def _of_remote_folder(url: str) -> list[ShardFile]:
    files, root = file_system(url)
    if _is_shard(url.partition("?")[0]):
        return [_file(url)]
    found = remote(url, lambda: files.find(root, maxdepth=3, detail=True))
    below = root.rstrip("/") + "/"
    items = [
        (files.unstrip_protocol(path), path[len(below) :] if path.startswith(below) else path.rpartition("/")[2], info)
        for path, info in found.items()
        if _is_shard(path)
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        return sorted(pool.map(lambda item: _remote_file(*item), items), key=lambda file: file.name)


def _remote_file(url: str, name: str, info: dict[str, Any]) -> ShardFile:
    if info.get("size") is None:
        files, path = file_system(url)
        info = {**info, **remote(url, lambda: files.info(path))}
    if info.get("size") is None:
        raise UserError(f"{printable(url)}: the server does not say how large it is, so that it cannot be read by position.")
    stamp = next((str(info[key]) for key in STAMPS if info.get(key)), "")
    return ShardFile(url, name, int(info["size"]), stamp)


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, of this process, and the path in it.

    Raises:
        UserError: fsspec or the package of the protocol is not installed.
    """
    if importlib.util.find_spec("fsspec") is None:
        raise UserError(f"{printable(url)}: a URL needs fsspec. Get it with: pip install 'stvit[shards]'")
    import fsspec  # type: ignore[import-untyped]

    try:
        files, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{printable(url)}: {printable(first_line(error))}") from None
    return files, path


def remote(url: str, call: Callable[[], T]) -> T:
    """Return what a call of fsspec returns; one that failed is repeated.

    Raises:
        UserError: it failed `ATTEMPTS` times, or there is no such file.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except FileNotFoundError:
            raise UserError(f"{printable(url)}: there is no such file or folder.") from None
        except PermissionError as error:
            raise UserError(f"{printable(url)}: no permission: {printable(first_line(error))}.") from None
        except Exception as error:  # of aiohttp, botocore, gcsfs: no common class
            if attempt == ATTEMPTS - 1:
                reason = shortened(first_line(error), 200)
                raise UserError(f"{printable(url)}: cannot be read, {ATTEMPTS} times: {reason}.") from error
        time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable")


class _Handle:
    """An open file, closed when its last reader is done with it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | CLOSE_ON_EXEC)

    def __del__(self) -> None:
        number, self.number = getattr(self, "number", -1), -1
        if number >= 0:
            os.close(number)


class Reader:
    """Ranges of files, read by any number of threads and processes: positions are given, so that handles share no state."""

    def __init__(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()
        self._files: OrderedDict[str, _Handle] = OrderedDict()
        self._hosts: dict[str, bool] = {}
        self._copies: dict[str, str] = {}

    def __reduce__(self) -> tuple[type[Reader], tuple[()]]:
        return Reader, ()

    def read(self, path: str, start: int, length: int) -> bytes:
        """Return the bytes of a range, fewer where the file ends.

        Args:
            path: local, or a URL.
            start: position of the first byte.
            length: number of bytes.

        Raises:
            UserError: the file cannot be read.
        """
        if is_remote(path):
            files, inside = file_system(path)
            if self._has_ranges(path):
                sent: bytes = remote(path, lambda: files.cat_file(inside, start=start, end=start + length))
                return sent
            path = self._copy(path)
        try:
            file = self._open(path)
            content = read_at(file.number, length, start)
            while len(content) < length:
                more = read_at(file.number, length - len(content), start + len(content))
                if not more:
                    break
                content += more
            return content
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise UserError(f"{printable(path)}: there is no such shard.{nearest_sibling(Path(path))}") from None
            raise UserError(f"{printable(path)} cannot be read: {reason_of(error)}.") from None

    def _has_ranges(self, url: str) -> bool:
        """Return whether a server sends ranges, asked once for each host: Python's own, for one, sends complete files."""
        host = url[: url.find("/", url.find("://") + 3)]
        if host not in self._hosts:
            files, inside = file_system(url)
            is_web = url.startswith(("http://", "https://"))
            self._hosts[host] = not is_web or len(remote(url, lambda: files.cat_file(inside, start=0, end=1))) <= 1
        return self._hosts[host]

    def _copy(self, url: str) -> str:
        """Return a local copy of a file; of all processes that share the cache folder one makes it."""
        if url not in self._copies:
            files, inside = file_system(url)
            shard = _remote_file(url, inside, remote(url, lambda: files.info(inside)))
            size = shard.size
            digest = hashlib.blake2b(f"{url} {size} {shard.stamp}".encode(), digest_size=12).hexdigest()
            path = cache_dir() / f"shard-{digest}{Path(inside).suffix}"
            with writing(path, "Make room there, or set XDG_CACHE_HOME to another folder."):
                path.parent.mkdir(parents=True, exist_ok=True)
                with building(path, path.is_file) as is_mine:
                    if is_mine:
                        with replacing(path) as temporary:
                            remote(url, lambda: files.get_file(inside, str(temporary)))
            self._copies[url] = str(path)
        return self._copies[url]

    def _open(self, path: str) -> _Handle:
        """Return an open file. One that another thread takes out of the table closes when its last reader is done."""
        with self._lock:
            if self._process != os.getpid():
                self._files, self._process = OrderedDict(), os.getpid()
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = _Handle(path)
            self._files.move_to_end(path)
            if len(self._files) > MAX_OPEN:
                self._files.popitem(last=False)
            return file


def common_root(files: Sequence[ShardFile]) -> str:
    """Return the folder that the files are in, or that their folders are in."""
    folders = [file.path[: len(file.path) - len(file.name)] for file in files]
    return folders[0].rstrip("/") if folders else ""
