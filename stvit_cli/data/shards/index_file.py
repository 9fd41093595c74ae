"""The file of an index: a header and three columns, mapped into memory, so that all processes of a machine share them.

12 bytes an image: 14.2 million are 170 MB. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.shards.part import NO_LABEL, Part
from stvit_cli.data.shards.storage import ShardFile
from stvit_cli.errors import UserError
from stvit_cli.utils.files import replacing
from stvit_cli.utils.text import printable

FORMAT = 1
MAGIC = b"stvit shard index\n"
ALIGNMENT = 4096

Identity = tuple[str, int, str]
"""Name, size and stamp of a shard."""


@dataclass(frozen=True)
class IndexContent:
    """What an index file holds; the arrays are mapped into memory.

    Attributes:
        shards: name, size and stamp of each.
        counts: images of each shard.
        positions, sizes, codes: as in `Part`, of all shards, (N,); ``codes`` index ``labels``.
        labels: as in `Part`, of all shards.
        long_names: as in `Part`, by the image's position in the index.
        names: class names that the files themselves have.
        problems: what is damaged, by shard.
        notes: what was left out, by shard.
        digest: hash of the columns and of the sizes of the shards.
    """

    shards: tuple[Identity, ...]
    counts: tuple[int, ...]
    positions: NDArray[np.uint32]
    sizes: NDArray[np.uint32]
    codes: NDArray[np.int32]
    labels: tuple[tuple[str, str], ...]
    long_names: dict[int, str]
    names: tuple[str, ...]
    problems: dict[int, str]
    notes: dict[int, tuple[str, ...]]
    digest: str

    def parts(self) -> dict[Identity, Part]:
        """Return the part of each shard: an index of fewer or other shards is made from those that are unchanged."""
        found, start = {}, 0
        for number, (identity, count) in enumerate(zip(self.shards, self.counts, strict=True)):
            rows = slice(start, start + count)
            found[identity] = Part(
                np.array(self.positions[rows]),
                np.array(self.sizes[rows]),
                np.array(self.codes[rows]),
                self.labels,
                {row - start: name for row, name in self.long_names.items() if start <= row < start + count},
                self.names,
                self.problems.get(number, ""),
                self.notes.get(number, ()),
            )
            start += count
        return found


def identity_of(file: ShardFile) -> Identity:
    """Return what a shard is recognized by."""
    return file.name, file.size, file.stamp


def write_index(path: Path, shards: Sequence[Identity], parts: Sequence[Part]) -> None:
    """Write an index atomically.

    Args:
        path: of the file.
        shards: name, size and stamp of each shard.
        parts: of the shards, in the same order.

    Raises:
        OSError: it cannot be written.
        UserError: the shards name the classes differently.
    """
    names = _names_of_all(shards, parts)
    labels: dict[tuple[str, str], int] = {}
    codes: list[NDArray[Any]] = []
    long_names: dict[str, str] = {}
    start = 0
    for part in parts:
        used, first = np.unique(part.codes[part.codes >= 0], return_index=True)  # parts of an old index have all of its labels
        table = np.full(max(1, len(part.labels)), NO_LABEL, dtype=np.int32)
        for code in used[np.argsort(first)].tolist():
            table[code] = labels.setdefault(part.labels[code], len(labels))
        codes.append(np.where(part.codes < 0, NO_LABEL, table[np.maximum(part.codes, 0)]).astype(np.int32))
        long_names |= {str(start + number): name for number, name in part.long_names.items()}
        start += len(part)
    columns: list[list[NDArray[Any]]] = [[part.positions for part in parts], [part.sizes for part in parts], codes]
    digest = hashlib.blake2b(json.dumps([[name, size] for name, size, _ in shards]).encode(), digest_size=16)
    for column in columns:
        for each in column:
            digest.update(np.ascontiguousarray(each).astype("<u4").tobytes())
    header = {
        "format": FORMAT,
        "shards": shards,
        "counts": [len(part) for part in parts],
        "labels": list(labels),
        "long_names": long_names,
        "names": names,
        "problems": {str(number): part.problem for number, part in enumerate(parts) if part.problem},
        "notes": {str(number): part.notes for number, part in enumerate(parts) if part.notes},
        "digest": digest.hexdigest(),
    }
    text = json.dumps(header).encode()
    start_of_columns = -(-(len(MAGIC) + 8 + len(text)) // ALIGNMENT) * ALIGNMENT
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + len(text).to_bytes(8, "little") + text)
        file.seek(start_of_columns)
        for column in columns:
            for each in column:
                file.write(np.ascontiguousarray(each).astype("<u4").tobytes())
        file.truncate(start_of_columns + 12 * sum(map(len, parts)))


def _names_of_all(shards: Sequence[Identity], parts: Sequence[Part]) -> tuple[str, ...]:
    """Return the class names that the files have. Raises UserError where they differ: number 3 would be two classes."""
    known: tuple[str, tuple[str, ...]] | None = None
    for (name, _, _), part in zip(shards, parts, strict=True):
        if part.names and known is None:
            known = name, part.names
        elif part.names and known is not None:
            require_same_names(*known, name, part.names)
    return () if known is None else known[1]


def require_same_names(first: str, names: Sequence[str], second: str, others: Sequence[str]) -> None:
    """Raise UserError where two files of a data set number other classes.

    Args:
        first: a file, for the message.
        names: its classes.
        second: another file.
        others: its classes.
    """
    if tuple(names) == tuple(others):
        return
    pairs = zip(names, others, strict=False)
    number = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(names), len(others)))
    one, other = (printable(found[number]) if number < len(found) else "none" for found in (names, others))
    raise UserError(
        f"Class {number} is {one} in {printable(first)}, but {other} in {printable(second)}: the files number their classes "
        "differently.\nUse those that agree, such as data.train_split='PATTERN', or number the labels alike."
    )


def read_index(path: Path) -> IndexContent | None:
    """Return an index, None where there is none or the file is something else.

    Args:
        path: of the file; its columns are mapped into memory, not read.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return None
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if length > size:
                return None
            header = json.loads(file.read(length))
            return _content(file, header, -(-(len(MAGIC) + 8 + length) // ALIGNMENT) * ALIGNMENT, size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, cut short, of another version
        return None


def _content(file: Any, header: dict[str, Any], start: int, size: int) -> IndexContent:
    if header["format"] != FORMAT:
        raise ValueError("of another version")
    counts = tuple(map(int, header["counts"]))
    total = sum(counts)
    if size != start + 12 * total or len(counts) != len(header["shards"]):
        raise ValueError("of another length")
    columns: NDArray[np.uint32] = np.empty((3, 0), dtype="<u4")
    if total:  # nothing cannot be mapped
        columns = np.memmap(file, dtype="<u4", mode="r", offset=start, shape=(3, total))
    return IndexContent(
        shards=tuple((str(name), int(size), str(stamp)) for name, size, stamp in header["shards"]),
        counts=counts,
        positions=columns[0],
        sizes=columns[1],
        codes=columns[2].view("<i4"),
        labels=tuple((str(kind), str(text)) for kind, text in header["labels"]),
        long_names={int(row): str(name) for row, name in header["long_names"].items()},
        names=tuple(map(str, header["names"])),
        problems={int(number): str(text) for number, text in header["problems"].items()},
        notes={int(number): tuple(map(str, texts)) for number, texts in header["notes"].items()},
        digest=str(header["digest"]),
    )
