"""Random access to the images of shards: `open_shards` and `ShardIndex`. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.shards.index_builder import Advance, load_or_build
from stvit_cli.data.shards.index_file import IndexContent
from stvit_cli.data.shards.labels import class_table
from stvit_cli.data.shards.part import NO_LABEL
from stvit_cli.data.shards.reader import Reader
from stvit_cli.data.shards.storage import PARQUET, ShardFile, common_root, list_shards
from stvit_cli.data.shards.tar_shard import BLOCK, header_name, split_name
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few, printable

_READER = Reader()
"""Of this process; after a fork it opens its files again."""


class ShardIndex:
    """The images of some shards, by their position: shard after shard, in the order within the shard.

    Any number of threads and of forked or spawned processes may read from it.

    Args:
        files: the shards.
        content: their index.
        class_names: names of the classes, see `labels.class_table`.
        image_column: column of Parquet with the image; None: found by its name.

    Attributes:
        files: the shards.
        class_names: in the order of the numbers that `label` returns.
        root: the folder or URL that they are in.
        fingerprint: hash of the shards' names, sizes and of the position, size and label of each image; not of pixels.
        problems: what is damaged, by the name of the shard; images before the damage are in the index.
        notes: remarks for the user.
    """

    def __init__(
        self,
        files: Sequence[ShardFile],
        content: IndexContent,
        class_names: Sequence[str] = (),
        image_column: str | None = None,
    ) -> None:
        self.files, self.content, self._image_column = tuple(files), content, image_column
        self._starts = np.concatenate([[0], np.cumsum(content.counts)]).astype(np.int64)
        self._classes, self.class_names = class_table(content.labels, class_names or content.names, files[0].path)
        self.root, self.fingerprint = common_root(files), content.digest
        self.problems = {files[number].name: text for number, text in content.problems.items()}
        self.notes = tuple(
            f"{printable(files[number].path)}: {note}" for number, notes in content.notes.items() for note in notes
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shard_starts(self) -> NDArray[np.int64]:
        """The position of the first image of each shard, and the number of images, (S + 1,)."""
        return self._starts

    def shard_of(self, index: int) -> int:
        """Return the position of an image's shard in ``files``."""
        return int(np.searchsorted(self._starts, self._checked(index), side="right")) - 1

    def label(self, index: int) -> int:
        """Return the class of an image, -1 without one."""
        code = int(self.content.codes[index])
        return NO_LABEL if code < 0 else int(self._classes[code])

    def labels(self) -> NDArray[np.int32]:
        """Return the class of every image, (N,), -1 without one; four bytes an image."""
        table = np.append(self._classes, np.int32(NO_LABEL))  # the last: what code -1 takes
        return table[self.content.codes]

    def key(self, index: int) -> str:
        """Return WebDataset's ``__key__`` of an image, or Parquet's ``file:row``; unique within its shard.

        The key of a tar shard is read from it. Raises UserError where it cannot be.
        """
        file = self.files[self.shard_of(index)]
        if file.name.lower().endswith(PARQUET):
            return f"{file.name}:{index - int(self._starts[self.shard_of(index)])}"
        return split_name(self._member(index, file))[0]

    def name(self, index: int) -> str:
        """Return the shard and the file of an image in it, unique in the data set: ``train-0000.tar/000123.jpg``."""
        file = self.files[self.shard_of(index)]
        if file.name.lower().endswith(PARQUET):
            return self.key(index)
        return f"{file.name}/{self._member(index, file)}"

    def _member(self, index: int, file: ShardFile) -> str:
        long_name = self.content.long_names.get(index)
        if long_name is not None:
            return long_name
        return header_name(_READER.read(file, (int(self.content.positions[index]) - 1) * BLOCK, BLOCK))

    def read(self, index: int) -> bytes:
        """Return the encoded image.

        Raises:
            UserError: the shard cannot be read, or is shorter than it was.
        """
        file = self.files[self.shard_of(index)]
        position, size = int(self.content.positions[index]), int(self.content.sizes[index])
        if file.name.lower().endswith(PARQUET):
            from stvit_cli.data.shards.parquet_shard import read_row

            return read_row(file, position, size, self._image_column)
        content = _READER.read(file, position * BLOCK, size)
        if len(content) < size:
            raise UserError(f"{printable(file.path)} is shorter than when its index was made: it was changed or cut short.")
        return content

    def with_class_names(self, class_names: Sequence[str]) -> ShardIndex:
        """Return the same images with other names of the classes. Raises UserError where a label is none of them."""
        return ShardIndex(self.files, self.content, class_names, self._image_column)

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return index


def open_shards(
    source: str | os.PathLike[str] | Sequence[ShardFile],
    *,
    label_column: str | None = None,
    image_column: str | None = None,
    class_names: Sequence[str] = (),
    damaged: Literal["stop", "skip"] = "stop",
    advance: Advance = lambda done, total: None,
) -> ShardIndex:
    """Open shards for random access; their index is built the first time, and read from the cache afterwards.

    Args:
        source: a folder with ``.tar`` files in WebDataset's layout or ``.parquet`` files, one of them, a brace pattern
            (``train-{0000..1023}.tar``), each also as a URL of fsspec (``s3://``, ``gs://``, ``https://``); or what
            `storage.list_shards` returned, or a part of it.
        label_column: field of the samples' ``.json`` or column of Parquet with the label. None: ``.cls``, or a usual name.
        image_column: column of Parquet with the image. None: the only one of images.
        class_names: names of the classes in the order of their numbers. Empty: names in the files, the numbers, or, where the
            labels are names, these in sorted order.
        damaged: stop refuses a shard that is damaged or cut short; skip leaves out what cannot be read of it, and notes it.
        advance: called with the number of shards whose headers are read, and of all.

    Returns:
        The images of all shards, including those without a label.

    Raises:
        UserError: there are no shards, one cannot be read or is damaged, or labels are no classes.
        WriteError: the index cannot be written into the cache folder.

    Example:
        >>> import io, tarfile, tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with tarfile.open(Path(folder) / "a-0000.tar", "w") as tar:
        ...         for name, content in {"0.jpg": b"pixels", "0.cls": b"3"}.items():
        ...             member = tarfile.TarInfo(name)
        ...             member.size = len(content)
        ...             tar.addfile(member, io.BytesIO(content))
        ...     index = open_shards(folder)
        ...     len(index), index.key(0), index.label(0), index.read(0)
        (1, '0', 3, b'pixels')
    """
    files = list_shards(source) if isinstance(source, str | os.PathLike) else list(source)
    content = load_or_build(files, label_column=label_column, image_column=image_column, advance=advance)
    index = ShardIndex(files, content, class_names, image_column)
    if index.problems:
        lines = [f"{printable(name)}: {problem}." for name, problem in index.problems.items()]
        if damaged == "stop":
            more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
            found = "\n".join(lines[:3])
            raise UserError(
                f"{len(lines)} of {len(files)} shards are damaged{more and ':'}\n{found}{more}\n"
                "Get them again; or data.unreadable=skip, which uses the images before the damage."
            )
        index.notes += (f"{len(lines)} shards are damaged, only the images before the damage are used: {first_few(lines, 3)}",)
    return index
