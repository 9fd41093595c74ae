"""Shards made of a folder of images by class: tar files in WebDataset's layout, the files' bytes untouched. Imports no torch."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stvit_cli.data.file_listing import require_folder
from stvit_cli.data.folder_index import index_folder
from stvit_cli.data.imagefolder import FolderImages
from stvit_cli.data.sampling import derive_seed
from stvit_cli.data.splits import LAYOUT, find_splits
from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling, reason_of, remove_leftovers, replace_file, replacing, writing
from stvit_cli.utils.text import printable

INFO, NAMES = "_info.json", "class_names.txt"
PLAN = "stvit_plan"
"""Field of ``_info.json`` that says what the shards were made of."""
BLOCK = 512
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class WrittenSplit:
    """The shards of one split.

    Attributes:
        name: train, val, test, or shard for a folder that is not divided.
        files: the shards' names.
        counts: images of each shard.
    """

    name: str
    files: tuple[str, ...]
    counts: tuple[int, ...]


def parse_size(text: str) -> int:
    """Return a number of bytes.

    Args:
        text: such as ``256MB``, ``1GB`` (powers of ten) or ``512MiB``.

    Raises:
        UserError: it is no size, or less than 1000 bytes.

    Example:
        >>> parse_size("256MB"), parse_size("1 GiB")
        (256000000, 1073741824)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ki|mi|gi|k|m|g)?b?", text.strip().lower())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1000:
        raise UserError(f"--size: found {printable(text)}, expected a size such as 256MB or 1GB.")
    return size


def write_shards(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    size: int = 256_000_000,
    shuffle: bool = True,
    threads: int = 4,
    advance: Advance = lambda done, total: None,
) -> list[WrittenSplit]:
    """Write the images of a folder into shards.

    A sample is the image under its path in the folder, with dots of its name replaced by ``_``, and ``.cls`` with the number of
    its class. ``class_names.txt`` has the names, ``_info.json`` the shards of each split, as timm's data sets have it. What a
    call that was interrupted has finished stays, and the next one goes on with the rest.

    Args:
        folder: folders by class, split or not.
        output: the folder of the shards; it may exist if they are the ones of an earlier call.
        size: of a shard, in bytes, at most, unless a single image is larger.
        shuffle: put the images of a split in random order, always the same, as block shuffling needs. False: by class.
        threads: shards that are written at once.
        advance: called with the number of shards done, and of all.

    Returns:
        The shards of each split.

    Raises:
        UserError: there is no such folder, an image cannot be read, or the output holds something else.
        WriteError: it cannot be written.
    """
    root = require_folder(Path(folder), "images", LAYOUT)
    out = Path(output).expanduser()
    sets = _splits(root)
    plans = [(name, images, list(_plan(images, size, shuffle, threads))) for name, images in sets]
    digest = _digest(plans, size, shuffle)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    _require_own(out, digest)
    jobs = [(_name(split, number, plan), images, rows) for split, images, plan in plans for number, rows in enumerate(plan)]
    written = [
        WrittenSplit(split, tuple(_name(split, number, plan) for number in range(len(plan))), tuple(map(len, plan)))
        for split, _, plan in plans
    ]
    with writing(out):
        remove_leftovers(out)
        _describe(out, digest, plans[0][1].class_names, written, complete=False)
        keys = {split: _keys(images) for split, images, _ in plans}
        key_of = {_name(split, number, plan): keys[split] for split, _, plan in plans for number in range(len(plan))}
        missing = [job for job in jobs if not (out / job[0]).is_file()]
        advance(len(jobs) - len(missing), len(jobs))
        with ThreadPoolExecutor(threads, thread_name_prefix="shards") as pool:
            futures = [pool.submit(_write, out / name, images, rows, key_of[name]) for name, images, rows in missing]
            try:
                for done, future in enumerate(as_completed(futures), start=len(jobs) - len(missing) + 1):
                    future.result()
                    advance(done, len(jobs))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        _describe(out, digest, plans[0][1].class_names, written, complete=True)
    return written


def _splits(root: Path) -> list[tuple[str, FolderImages]]:
    """Return the images of each split, with the classes of the training images."""
    splits = find_splits(root)
    named = [("train", splits.train), ("val", splits.val), ("test", splits.left_out)]
    folders = [(name, root / folder) for name, folder in named if folder is not None] or [("shard", root)]
    indices = [(name, index_folder(folder)) for name, folder in folders]
    class_names = indices[0][1].class_names
    for name, index in indices:
        if not sum(index.counts):
            raise UserError(f"{printable(str(index.root))} has no images in class folders.\n{LAYOUT}")
        found = [of for of, count in zip(index.class_names, index.counts, strict=True) if count]
        unknown = [of for of in found if of not in class_names]
        if unknown:
            raise UserError(f"{printable(str(index.root))}: class {printable(unknown[0])} of {name} is none of {indices[0][0]}.")
    return [(name, FolderImages(index, class_names)) for name, index in indices]


def _plan(images: FolderImages, size: int, shuffle: bool, threads: int) -> Iterator[list[int]]:
    """Yield the images of each shard."""
    order = list(range(len(images)))
    if shuffle:
        seed = derive_seed("shards", len(images))
        order = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32]).permutation(len(images)).tolist()

    def bytes_of(index: int) -> int:
        try:
            return os.stat(images.path(index)).st_size
        except OSError as error:
            raise UserError(f"{printable(images.path(index))} cannot be read: {reason_of(error)}.") from None

    with ThreadPoolExecutor(max(threads, 4)) as pool:
        sizes = pool.map(bytes_of, order, chunksize=256)
        rows: list[int] = []
        filled = 2 * BLOCK
        for index, content in zip(order, sizes, strict=True):
            taken = 3 * BLOCK + -(-content // BLOCK) * BLOCK
            if rows and filled + taken > size:
                yield rows
                rows, filled = [], 2 * BLOCK
            rows.append(index)
            filled += taken
        yield rows


def _digest(plans: Sequence[tuple[str, FolderImages, list[list[int]]]], size: int, shuffle: bool) -> str:
    total = hashlib.blake2b(json.dumps([size, shuffle]).encode(), digest_size=10)
    for name, images, plan in plans:
        total.update(json.dumps([name, images.fingerprint(), list(map(len, plan))]).encode())
    return total.hexdigest()


def _require_own(out: Path, digest: str) -> None:
    """Refuse a folder that holds something else than shards of the same plan."""
    try:
        found = json.loads((out / INFO).read_bytes())
        known = found.get(PLAN) if isinstance(found, dict) else None
    except FileNotFoundError:
        known = None
        others = [path.name for path in out.iterdir() if not path.name.startswith(".")]
        if not others:
            return
        raise UserError(f"{printable(str(out))} is not empty ({printable(min(others))}); give a new folder.") from None
    except ValueError:
        known = None
    if known != digest:
        raise UserError(
            f"{printable(str(out))} has shards of other images or of another --size; give a new folder, or remove it."
            f"{nearest_sibling(out)}"
        )


def _name(split: str, number: int, plan: Sequence[object]) -> str:
    return f"{split}-{number:0{max(4, len(str(len(plan) - 1)))}}.tar"


def _keys(images: FolderImages) -> list[str]:
    """Return the key of each image, unique in the split: its path without dots and ending."""
    taken: set[str] = set()
    keys = []
    for index in range(len(images)):
        folder, name = os.path.split(images.relative_path(index))
        key = plain = f"{folder}/{name.rpartition('.')[0].replace('.', '_') or '_'}"
        number = 1
        while key in taken:
            key, number = f"{plain}-{number}", number + 1
        taken.add(key)
        keys.append(key)
    return keys


def _write(path: Path, images: FolderImages, rows: Sequence[int], keys: Sequence[str]) -> None:
    """Write a shard; two calls write the same bytes."""
    with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar:
        for index in rows:
            file = Path(images.path(index))
            try:
                content = file.read_bytes()
            except OSError as error:
                raise UserError(f"{printable(str(file))} cannot be read: {reason_of(error)}.") from None
            _add(tar, f"{keys[index]}{file.suffix.lower()}", content)
            _add(tar, f"{keys[index]}.cls", str(images.target(index)).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _describe(out: Path, digest: str, class_names: Sequence[str], written: Sequence[WrittenSplit], *, complete: bool) -> None:
    """Write the names of the classes, and the shards of each split as timm's data sets have them."""
    splits: dict[str, Any] = {
        split.name: {
            "name": split.name,
            "num_samples": sum(split.counts),
            "filenames": split.files,
            "shard_lengths": split.counts,
        }
        for split in written
        if split.name != "shard"
    }
    info = {PLAN: digest, "complete": complete, "splits": splits}
    replace_file(out / NAMES, "".join(f"{name}\n" for name in class_names).encode("utf-8", "surrogateescape"))
    replace_file(out / INFO, json.dumps(info).encode())
