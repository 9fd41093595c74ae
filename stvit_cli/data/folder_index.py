"""The index of a folder of images by class: found with threads, kept in one block of memory, cached for large folders.

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
from typing import Any

from stvit_cli.data.file_listing import (
    FolderTimes,
    Listing,
    counted,
    entries,
    is_link_of_interest,
    kind_of,
    list_files,
    require_whole_links,
    same_name,
)
from stvit_cli.data.images import ENDINGS
from stvit_cli.utils.files import cache_dir, replace_file

CACHED_FROM = 10_000
"""Images; a smaller folder is listed in less time than it takes to think about."""

SETTLED_S = 2.0
"""A folder changed less than this before it was listed may change again within one tick of its clock: not cached yet."""

FORMAT = 2
THREADS = 16

Times = dict[str, FolderTimes]
"""Of each folder, by its path below the root."""


@dataclass(frozen=True)
class FolderIndex:
    """The images below ``root``, class after class, in the order of torchvision's ImageFolder."""

    root: Path
    class_names: tuple[str, ...]
    """The folders in ``root``, sorted. Folders whose names differ in nothing but Unicode's spelling are one class."""
    counts: tuple[int, ...]
    """Images of each class; a class may have none."""
    paths: bytes
    """Paths below ``root``, each ended by a zero byte: no Python object for each file, so that workers share the memory."""
    other_endings: tuple[tuple[str, int], ...] = ()
    """How many files were left out, by their ending."""


def index_folder(root: Path) -> FolderIndex:
    """Return the index of ``root``: from the cache where it still holds, otherwise by looking.

    Raises:
        UserError: a folder cannot be listed, or a link leads nowhere.
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
    found = [(entry.name, kind_of(entry)) for entry in entries(root)]
    require_whole_links(root, [name for name, kind in found if kind == "nothing" and is_link_of_interest(name, ())])
    folders = sorted(name for name, kind in found if kind == "folder")
    with ThreadPoolExecutor(THREADS) as pool:
        listings = dict(zip(folders, pool.map(lambda name: list_files(root, name), folders), strict=True))
    require_whole_links(root, [path for listing in listings.values() for path in listing.broken_links])
    for listing in listings.values():
        times.update(listing.folder_times)
    classes: dict[str, list[str]] = {}
    for name in folders:
        classes.setdefault(same_name(name), []).append(name)
    paths = [[path for name in names for path in _sorted_paths(listings[name])] for names in classes.values()]
    index = FolderIndex(
        root=root,
        class_names=tuple(names[0] for names in classes.values()),
        counts=tuple(len(of_class) for of_class in paths),
        paths=b"".join(path + b"\0" for of_class in paths for path in of_class),
        other_endings=tuple(sorted(counted(listing.other_endings for listing in listings.values()).items())),
    )
    return index, times


def _sorted_paths(listing: Listing) -> list[bytes]:
    return sorted(map(os.fsencode, listing.paths), key=os.path.split)


def _times(folder: Path) -> FolderTimes:
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
        "other_endings": index.other_endings,
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
    try:
        index, times = _read(root, json.loads(first), paths)
    except (ValueError, KeyError, TypeError, AttributeError):  # made by another version, or by somebody: looked up again
        return None

    def unchanged(item: tuple[str, FolderTimes]) -> bool:
        try:
            return _times(root / item[0]) == item[1]
        except OSError:
            return False

    with ThreadPoolExecutor(THREADS) as pool:
        return index if all(pool.map(unchanged, times.items())) else None


def _read(root: Path, header: dict[str, Any], paths: bytes) -> tuple[FolderIndex, Times]:
    """Return what a cache file holds. Raises one of the errors of a wrong type where it is not the index of ``root``."""
    if (header["format"], header["endings"], header["root"]) != (FORMAT, list(ENDINGS), str(root)):
        raise ValueError("of another folder, or another version")
    index = FolderIndex(
        root=root,
        class_names=tuple(header["class_names"]),
        counts=tuple(header["counts"]),
        paths=paths,
        other_endings=tuple((ending, count) for ending, count in header["other_endings"]),
    )
    times = {name: (int(content), int(inode)) for name, (content, inode) in header["times"].items()}
    if not all(type(count) is int and count >= 0 for count in index.counts) or sum(index.counts) != paths.count(b"\0"):
        raise ValueError("counts that do not fit")
    if len(index.counts) != len(index.class_names) or not {"", *index.class_names} <= times.keys():
        raise ValueError("classes without a count, or folders that nothing is known of")
    if _leaves(paths) or any("/" in name or name in ("", "..") for name in index.class_names):
        raise ValueError("a name that leads out of the folder")
    return index, times


def _leaves(paths: bytes) -> bool:
    """Whether one of the paths, each ended by a zero byte, is absolute, empty or goes up; searched as one block, for speed."""
    if paths and (paths[:1] in (b"/", b"\0") or paths[:3] in (b"../", b"..\0") or paths[-1:] != b"\0"):
        return True
    return any(part in paths for part in (b"\0/", b"\0\0", b"\0../", b"\0..\0", b"/../", b"/..\0"))
