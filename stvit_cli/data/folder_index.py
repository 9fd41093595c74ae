"""The index of a folder of pictures by class: found with threads, kept in one block of memory, cached for large folders.

ImageNet has 1.28 million files in 1000 folders: to list them takes minutes on a network disk, to look at the 1000 folders takes a
moment. A file that comes, goes or is renamed changes the times of its folder, so these are what a cached index is checked by.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stvit_cli.data.images import ENDINGS
from stvit_cli.errors import UserError
from stvit_cli.utils.files import cache_dir, replace_file

CACHED_FROM = 10_000
"""Pictures; a smaller folder is listed in less time than it takes to think about."""

SETTLED_S = 2.0
"""A folder changed less than this before it was listed may change again within one tick of its clock: not cached yet."""

FORMAT = 1
THREADS = 16

Times = dict[str, tuple[int, int]]
"""For each folder, by its path below the root: when its content and its inode last changed, in nanoseconds."""


@dataclass(frozen=True)
class FolderIndex:
    """The pictures below ``root``, class after class, in the order of torchvision's ImageFolder."""

    root: Path
    class_names: tuple[str, ...]
    """The folders in ``root``, sorted; hidden ones are left out, here and below."""
    counts: tuple[int, ...]
    """Pictures of each class; a class may have none."""
    paths: bytes
    """Paths below ``root``, each ended by a zero byte: no Python object for each file, so that workers share the memory."""


def index_folder(root: Path) -> FolderIndex:
    """Return the index of ``root``: from the cache where it still holds, otherwise by looking.

    Raises:
        UserError: a folder cannot be listed.
    """
    root = root.resolve()
    cached = _load(root)
    if cached is not None:
        return cached
    started = time.time_ns()
    index, times = _scan(root)
    settled = started - int(SETTLED_S * 1e9)
    if sum(index.counts) >= CACHED_FROM and all(max(pair) < settled for pair in times.values()):
        _save(index, times)
    return index


def _scan(root: Path) -> tuple[FolderIndex, Times]:
    times: Times = {"": _times(root)}  # before the listing: what changes meanwhile is then seen as a change
    class_names = sorted(entry.name for entry in _entries(root) if entry.is_dir())
    with ThreadPoolExecutor(THREADS) as pool:
        classes = list(pool.map(lambda name: _scan_class(root, name), class_names))
    for _, times_below in classes:
        times.update(times_below)
    index = FolderIndex(
        root=root,
        class_names=tuple(class_names),
        counts=tuple(len(found) for found, _ in classes),
        paths=b"".join(path + b"\0" for found, _ in classes for path in found),
    )
    return index, times


def _scan_class(root: Path, class_name: str) -> tuple[list[bytes], Times]:
    """Return the paths of a class and the times of its folders. Links are followed, but never into a folder they lie in."""
    paths: list[bytes] = []
    times: Times = {}
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(class_name, frozenset())]
    while waiting:
        below, above = waiting.pop()
        stat = os.stat(root / below)
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            continue
        times[below] = (stat.st_mtime_ns, stat.st_ctime_ns)
        for entry in _entries(root / below):
            path = f"{below}/{entry.name}"
            if entry.is_dir():
                waiting.append((path, above | {here}))
            elif entry.name.lower().endswith(ENDINGS):  # a link to nowhere too: it is named when it is read
                paths.append(os.fsencode(path))
    return sorted(paths, key=os.path.split), times


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List what is not hidden in a folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}.") from None


def _times(folder: Path) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_mtime_ns, stat.st_ctime_ns


def _cache_file(root: Path) -> Path:
    return cache_dir() / f"folder-{hashlib.blake2b(os.fsencode(root), digest_size=10).hexdigest()}"


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=20).hexdigest().encode()


def _save(index: FolderIndex, times: Times) -> None:
    """Write the index beside its place and rename it. A cache that cannot be written is none."""
    header = {
        "format": FORMAT,
        "endings": ENDINGS,
        "root": str(index.root),
        "class_names": index.class_names,
        "counts": index.counts,
        "times": times,
    }
    content = json.dumps(header).encode() + b"\n" + index.paths
    try:
        file = _cache_file(index.root)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, _digest(content) + b"\n" + content)
    except OSError:  # no room, no right, no home
        return


def _load(root: Path) -> FolderIndex | None:
    """Return the cached index if it is whole, of this folder, and every folder in it is unchanged."""
    try:
        digest, _, content = _cache_file(root).read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest != _digest(content):
        return None
    first, _, paths = content.partition(b"\n")
    header = json.loads(first)
    if (header["format"], header["endings"], header["root"]) != (FORMAT, list(ENDINGS), str(root)):
        return None

    def unchanged(item: tuple[str, list[int]]) -> bool:
        try:
            return _times(root / item[0]) == tuple(item[1])
        except OSError:
            return False

    with ThreadPoolExecutor(THREADS) as pool:
        if not all(pool.map(unchanged, header["times"].items())):
            return None
    return FolderIndex(root, tuple(header["class_names"]), tuple(header["counts"]), paths)
