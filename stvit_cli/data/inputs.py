"""Images to predict, by number: of folders, of text lists of paths, of single files, and of shards. Imports no torch.

Made for millions: names are kept as bytes in two arrays, which forked processes share, and nothing is opened before it is read.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.file_listing import list_files
from stvit_cli.data.image_paths import images_below
from stvit_cli.data.images import read_image_file
from stvit_cli.data.shards.storage import PARQUET, TAR
from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling, reason_of
from stvit_cli.utils.text import printable

LIST_ENDINGS = (".txt", ".lst", ".list")
"""Endings of text files with a path on each line."""
NUM_TRIED = 20
"""Paths of a list that are tried to find out what all are relative to."""


class Inputs(Protocol):
    """Encoded images, in an order that stays the same. Safe in forked processes; pickled, it is small or opens its files again.

    Attributes:
        sources: where they come from: folders, lists and shards, as they were named.
    """

    @property
    def sources(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def source(self, index: int) -> int:
        """Return the position in ``sources`` of where an image comes from."""
        ...

    def key(self, index: int) -> str:
        """Return the name of an image within its source."""
        ...

    def read(self, index: int) -> bytes:
        """Return the encoded image. Raises UserError where it cannot be read."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the names and their order."""
        ...


class FileInputs:
    """Image files, by their names below a folder.

    Args:
        source: what they are listed in.
        root: the folder that their names are relative to; empty: names are paths as they are.
        names: of the files.

    Example:
        >>> files = FileInputs("photos", "photos", [b"a.jpg", b"b/c.jpg"])
        >>> len(files), files.key(1)
        (2, 'b/c.jpg')
    """

    def __init__(self, source: str, root: str, names: Iterable[bytes]) -> None:
        self.sources = (source,)
        self._root = root
        names = list(names)
        self._ends: NDArray[np.int64] = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._names = b"".join(names)

    def __len__(self) -> int:
        return len(self._ends)

    def source(self, index: int) -> int:
        return 0

    def key(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._names[start : int(self._ends[index])])

    def read(self, index: int) -> bytes:
        return read_image_file(os.path.join(self._root, self.key(index)))

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self._names, digest_size=16)
        digest.update(self._ends.astype("<i8").tobytes())
        return digest.hexdigest()


class JoinedInputs:
    """Several inputs, one after the other."""

    def __init__(self, parts: Sequence[Inputs]) -> None:
        self._parts = list(parts)
        self.sources = tuple(source for part in parts for source in part.sources)
        self._ends = np.cumsum([len(part) for part in parts])
        self._first_source = np.cumsum([0, *(len(part.sources) for part in parts)])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def source(self, index: int) -> int:
        number, inside = self._find(index)
        return int(self._first_source[number]) + self._parts[number].source(inside)

    def key(self, index: int) -> str:
        number, inside = self._find(index)
        return self._parts[number].key(inside)

    def read(self, index: int) -> bytes:
        number, inside = self._find(index)
        return self._parts[number].read(inside)

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for part in self._parts:
            digest.update(f"{len(part)} {part.fingerprint()}\n".encode())
        return digest.hexdigest()

    def _find(self, index: int) -> tuple[int, int]:
        """Return the part that an image is in, and its index there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        if index < 0 or number == len(self._parts):
            raise IndexError(index)
        return number, index - (int(self._ends[number - 1]) if number else 0)


def open_inputs(sources: Sequence[str], say: Callable[[str], None] = lambda line: None) -> Inputs:
    """Find the images of some sources, in their order.

    Args:
        sources: folders, whose images in and below them are sorted; image files; text files with a path on each line
            (`LIST_ENDINGS`); tar or Parquet shards, or a folder, pattern or address of them (`is_of_shards`).
        say: is told what a folder has that is left out.

    Raises:
        UserError: one of them is not there, or has no image.
    """
    parts: list[Inputs] = []
    files: list[bytes] = []

    def end_of_files() -> None:
        if files:
            parts.append(FileInputs("", "", files))
            files.clear()

    for source in sources:
        path = Path(source)
        if not is_of_shards(source) and not is_list(source) and not path.is_dir():
            if not (path.exists() or path.is_symlink()):
                raise UserError(f"{printable(source)}: there is no such file or folder.{nearest_sibling(path)}")
            files.append(os.fsencode(source))
            continue
        end_of_files()
        if is_list(source):
            parts.append(_listed(path))
        elif is_of_shards(source):
            shards = ShardInputs(source)
            for note in shards.notes:
                say(note)
            if not len(shards):
                raise UserError(f"{printable(source)}: there is no image in {len(shards.sources)} shards.")
            parts.append(shards)
        else:
            names = images_below(path, say)
            parts.append(FileInputs(source, source, map(os.fsencode, names)))
    end_of_files()
    return parts[0] if len(parts) == 1 else JoinedInputs(parts)


def is_list(source: str) -> bool:
    """Return whether a source is a text file with a path on each line, by its name."""
    return source.lower().endswith(LIST_ENDINGS) and not Path(source).is_dir()


def is_of_shards(source: str) -> bool:
    """Return whether a source is a shard, an address, a brace pattern, or a folder with shards and without images in it.

    Example:
        >>> [is_of_shards(name) for name in ("a/train-{000..127}.tar", "s3://bucket/train", "photos/a.jpg")]
        [True, True, False]
    """
    if Path(source).is_dir():
        return _holds_shards(Path(source))
    return "://" in source or source.lower().endswith((TAR, PARQUET))


def _holds_shards(folder: Path) -> bool:
    try:
        with os.scandir(folder) as found:
            if not any(entry.name.lower().endswith((TAR, PARQUET)) for entry in found):
                return False
    except OSError:
        return False
    return not list_files(folder).paths


def _listed(path: Path) -> FileInputs:
    """Return the files that a text file lists. Relative paths are below its folder, or below the current one."""
    name = printable(str(path))
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file.{nearest_sibling(path)}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {reason_of(error)}.") from None
    if b"\0" in content:
        raise UserError(f"{name}: not a text file; expected a list of image files, a path on each line.")
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").split(b"\n") if line.strip()]
    if not lines:
        raise UserError(f"{name}: the list is empty; expected a path on each line.")
    tried = [os.fsdecode(line) for line in lines[:NUM_TRIED]]
    beside, here = (sum(Path(root, line).exists() for line in tried) for root in (path.parent, ""))
    return FileInputs(str(path), "" if here > beside else str(path.parent), lines)


class ShardInputs:
    """The images of shards. Pickled, it is the name of the shards: their index is opened again, and has to be the same one.

    Args:
        source: see `shards.open_shards`.
        fingerprint: of the images that are expected.

    Raises:
        UserError: they cannot be opened, or are others than those expected.
    """

    def __init__(self, source: str, fingerprint: str | None = None) -> None:
        from stvit_cli.data.shards import open_shards

        self._source, self._index = source, open_shards(source, damaged="skip")
        self.sources = tuple(file.path for file in self._index.files)
        self.notes = self._index.notes
        if fingerprint is not None and self._index.fingerprint != fingerprint:
            raise UserError(
                f"{printable(source)}: {printable(socket.gethostname())} has other shards than the machine of rank 0. Give a "
                "path that is the same on all machines, or copy the shards again."
            )

    def __reduce__(self) -> tuple[type[ShardInputs], tuple[str, str]]:
        return ShardInputs, (self._source, self._index.fingerprint)

    def __len__(self) -> int:
        return len(self._index)

    def source(self, index: int) -> int:
        return self._index.shard_of(index)

    def key(self, index: int) -> str:
        return self._index.key(index)

    def read(self, index: int) -> bytes:
        return self._index.read(index)

    def fingerprint(self) -> str:
        return self._index.fingerprint
