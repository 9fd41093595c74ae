"""Shards on a local file system or behind fsspec (s3, gs, http): which there are, and calls of fsspec. Imports no torch."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from stvit_cli.data.file_listing import is_left_out
from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling, reason_of
from stvit_cli.utils.text import first_line, printable, shortened

TAR, PARQUET = ".tar", ".parquet"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_SHARDS = 1_000_000
THREADS = 16
STAMPS = ("ETag", "etag", "generation", "LastModified", "last_modified", "Last-Modified", "Content-MD5", "updated", "mtime")
"""What fsspec's file systems call the version of a file or the time of its last change; the first one counts."""
ATTEMPTS = 4
"""Reads of a remote range before it counts as failed; the waits between them are 0.5, 1 and 2 seconds."""

WEB = ("http://", "https://")
"""Beginnings of addresses in which ``?`` begins a query."""

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


def without_query(path: str) -> str:
    """Return an address of the web without what follows ``?``, such as a signature; other paths as they are.

    >>> without_query("https://host/a.tar?key=1/2"), without_query("s3://bucket/a-?.tar")
    ('https://host/a.tar', 's3://bucket/a-?.tar')
    """
    return path.partition("?")[0] if path.startswith(WEB) else path


def is_pattern(text: str) -> bool:
    """Return whether a text is a brace or glob pattern, or several of them.

    >>> is_pattern("a-{0..3}.tar"), is_pattern("data/"), is_pattern("a-*.tar"), is_pattern("https://host/a.tar?key=1")
    (True, False, True, False)
    """
    return any(mark in text for mark in ("{", "::")) or any(map(_is_glob, text.split("::")))


def _is_glob(name: str) -> bool:
    return re.search(r"[*?]", without_query(name)) is not None


def list_shards(source: str | os.PathLike[str]) -> list[ShardFile]:
    """Return the shards of a source: sorted by name for a folder, in the order of a pattern otherwise.

    Args:
        source: ``data.dir``: a folder, whose folders are searched too; a shard; a brace or glob pattern; local, or a URL.

    Raises:
        UserError: there is nothing, a shard is missing, or shards are compressed and so have no random access.
    """
    text = os.fspath(source)
    for part in filter(is_remote, text.split("::")):
        file_system(part)[0].invalidate_cache()  # listings that fsspec keeps would hide what has changed
    if not is_pattern(text):
        files = _of_folder(text)
    else:
        names = expand_braces(text)
        paths = [path for name in names for path in (_glob(name) if _is_glob(name) else [_user(name)])]
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
    paths = [without_query(file.path).split("/") for file in files]
    depth = 0
    while paths and all(len(path) > depth + 1 and path[depth] == paths[0][depth] for path in paths):
        depth += 1
    return [replace(file, name="/".join(path[depth:])) for file, path in zip(files, paths, strict=True)]


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
        return remote_file(path, without_query(path).rpartition("/")[2], remote(path, lambda: files.info(inside)))
    try:
        stat = os.stat(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{printable(path)}: there is no such shard.{nearest_sibling(Path(path))}") from None
        raise UserError(f"{printable(path)} cannot be read: {reason_of(error)}.") from None
    name = Path(path).relative_to(root).as_posix() if root is not None else Path(path).name
    return ShardFile(str(Path(path).absolute()), name, stat.st_size, local_stamp(stat))


def _of_remote_folder(url: str) -> list[ShardFile]:
    files, root = file_system(url)
    if _is_shard(without_query(url)):
        return [_file(url)]
    found = remote(url, lambda: files.find(root, maxdepth=3, detail=True))
    below = root.rstrip("/") + "/"
    items = [
        (files.unstrip_protocol(path), path[len(below) :] if path.startswith(below) else path.rpartition("/")[2], info)
        for path, info in found.items()
        if _is_shard(path)
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        return sorted(pool.map(lambda item: remote_file(*item), items), key=lambda file: file.name)


def remote_file(url: str, name: str, info: dict[str, Any]) -> ShardFile:
    """Return a remote shard by what its file system says of it.

    Args:
        url: of the shard.
        name: of the shard, see `ShardFile`.
        info: fsspec's.

    Raises:
        UserError: it does not say how large the file is.
    """
    if info.get("size") is None:
        files, path = file_system(url)
        info = {**info, **remote(url, lambda: files.info(path))}
    if info.get("size") is None:
        raise UserError(f"{printable(url)}: the server does not say how large it is, so that it cannot be read by position.")
    return ShardFile(url, name, int(info["size"]), next(iter(stamps_of(info)), ""))


def stamps_of(info: dict[str, Any]) -> list[str]:
    """Return what a file system says of the version of a file, the surest first.

    >>> stamps_of({"size": 9, "ETag": '"5d41"', "mtime": 1.5})
    ['"5d41"', '1.5']
    """
    return [str(info[key]) for key in STAMPS if info.get(key)]


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


def local_stamp(stat: os.stat_result) -> str:
    """Return what tells a local shard from another one of the same size."""
    return str(stat.st_mtime_ns)


def common_root(files: Sequence[ShardFile]) -> str:
    """Return the folder that the files are in, or that their folders are in."""
    folders = [without_query(file.path).removesuffix(file.name) for file in files]
    return folders[0].rstrip("/") if folders else ""
