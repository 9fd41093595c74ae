"""Parquet files with encoded images and labels, as the Hugging Face Hub has them. Imports no torch.

Parquet has no random access to a row: its row group is read, and the last ones are kept. Hugging Face's files have 100 images in
a row group, so that a single image costs the reading of 100; with ``data.shuffle=block`` the others are used too.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from stvit_cli.data.shards.part import Part, PartBuilder
from stvit_cli.data.shards.reader import changed_error, require_unchanged
from stvit_cli.data.shards.storage import ShardFile, file_system, is_remote, local_stamp, remote
from stvit_cli.data.table_file import class_labels, holds_images
from stvit_cli.errors import UserError
from stvit_cli.utils.files import reason_of
from stvit_cli.utils.text import did_you_mean, first_few, first_line, printable, shortened

T = TypeVar("T")

LABEL_COLUMNS = ("label", "labels", "cls", "class", "class_id", "fine_label", "target", "category")
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")
MAX_ROW_GROUPS = 8
"""Row groups of images that a process keeps, decompressed."""
MAX_FILES = 16


def scan_parquet(file: ShardFile, *, label_column: str | None = None, image_column: str | None = None) -> Part:
    """Return the images of a Parquet file.

    Args:
        file: the file.
        label_column: column with the label. None: the first of `LABEL_COLUMNS`.
        image_column: column with the encoded images. None: the only one, or the first of `IMAGE_COLUMNS`.

    Returns:
        The images; none and a `Part.problem` where it is no Parquet file.

    Raises:
        UserError: pyarrow is not installed, or there is no such column.
    """
    _require_arrow(file)
    found = PartBuilder()
    try:
        content = _opened(file)
        schema = content.schema_arrow
        _image_column(file, schema, image_column)
        label = _label_column(file, schema, label_column)
        for group in range(content.num_row_groups):
            count = content.metadata.row_group(group).num_rows
            values: list[Any] = [None] * count
            if label is not None:
                values = _column(file, content, group, label).to_pylist()
            for row, value in enumerate(values):
                found.add(group, row, _label(value, file, label))
    except _DamagedError as error:
        return found.finished(problem=f"it cannot be read as Parquet: {error}")
    names = class_labels(schema.metadata or {}).get(label or "", ())
    return found.finished(names=names)


def read_row(file: ShardFile, group: int, row: int, image_column: str | None = None) -> bytes:
    """Return the encoded image of a row.

    Args:
        file: the file.
        group: its row group.
        row: its position there.
        image_column: as for `scan_parquet`.

    Raises:
        UserError: it cannot be read, or there is no image in the row.
    """
    _require_arrow(file)
    try:
        value = _GROUPS.images(file, group, image_column)[row].as_py()
    except _DamagedError as error:
        raise UserError(f"{printable(file.path)} cannot be read as Parquet: {error}.") from None
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise UserError(f"{printable(file.path)}, row group {group}, row {row}: there are no bytes of an image.")
    return content


class _RowGroups:
    """The row groups that a process read last, and its open files: by path and stamp, as shards may be replaced."""

    def __init__(self) -> None:
        self.lock, self.process = threading.Lock(), os.getpid()
        self.files: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self.groups: OrderedDict[tuple[str, str, int, str | None], Any] = OrderedDict()

    def images(self, file: ShardFile, group: int, image_column: str | None) -> Any:
        if self.process != os.getpid():  # handles and threads of another process
            self.__init__()  # type: ignore[misc]
        with self.lock:
            key = (file.path, file.stamp, group, image_column)
            if key not in self.groups:
                content = self.files.get(key[:2])
                if content is None:
                    content = self.files[key[:2]] = _opened(file)
                self.files.move_to_end(key[:2])
                self.groups[key] = _column(file, content, group, _image_column(file, content.schema_arrow, image_column))
            self.groups.move_to_end(key)
            while len(self.groups) > MAX_ROW_GROUPS:
                self.groups.popitem(last=False)
            while len(self.files) > MAX_FILES:
                self.files.popitem(last=False)
            return self.groups[key]


_GROUPS = _RowGroups()


class _DamagedError(Exception):
    """What is read is no Parquet file, or a part of it is not."""


def _require_arrow(file: ShardFile) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"{printable(file.path)} is a Parquet file, which needs pyarrow. Get it with: pip install 'stvit[shards]'"
        )


def _opened(file: ShardFile) -> Any:
    """Return the open Parquet file. Raises as `_read` does, and UserError where it is another one than was listed."""
    from pyarrow import parquet

    def opened() -> Any:
        if is_remote(file.path):
            files, path = file_system(file.path)
            return parquet.ParquetFile(files.open(path, "rb", block_size=1 << 20))
        if local_stamp(os.stat(file.path)) != file.stamp:
            raise changed_error(file.path)
        return parquet.ParquetFile(file.path)

    if is_remote(file.path):
        require_unchanged(file)
    return _read(file, opened)


def _column(file: ShardFile, content: Any, group: int, name: str) -> Any:
    return _read(file, lambda: content.read_row_group(group, columns=[name])[name])


def _read(file: ShardFile, call: Callable[[], T]) -> T:
    """Return what a call that reads a file returns.

    Raises:
        _DamagedError: what the file holds is not what it should be.
        UserError: it cannot be read at the moment; remotely, after several attempts.
    """
    import pyarrow as arrow

    def read() -> T | _DamagedError:
        try:
            return call()
        except MemoryError:
            raise UserError(f"{printable(file.path)}: there is not enough memory for one of its row groups.") from None
        except (arrow.ArrowException, OSError) as error:
            number = getattr(error, "errno", None)
            if number is not None or (isinstance(error, OSError) and is_remote(file.path)):  # of the disk or the network
                raise
            return _DamagedError(shortened(first_line(error), 160))  # pyarrow's own are without a number

    try:
        found = remote(file.path, read) if is_remote(file.path) else read()
    except OSError as error:
        raise UserError(f"{printable(file.path)} cannot be read: {reason_of(error)}.") from None
    if isinstance(found, _DamagedError):
        raise found
    return found


def _image_column(file: ShardFile, schema: Any, wanted: str | None) -> str:
    import pyarrow as arrow

    names = [field.name for field in schema if holds_images(arrow, field.type)]
    if wanted is not None and wanted not in names:
        raise UserError(
            f"data.path_column: {printable(file.path)} has no column {printable(wanted)} of images; "
            f"found {first_few(names) or 'none'}.{did_you_mean(wanted, names)}"
        )
    usual = [name for name in IMAGE_COLUMNS if name in names]
    if wanted is None and not usual and len(names) != 1:
        raise UserError(
            f"{printable(file.path)}: {'which column has the images? Name it: data.path_column=' if names else 'no column of '}"
            f"{first_few(names, 4) or 'encoded images'}."
        )
    return str(wanted or (usual or names)[0])


def _label_column(file: ShardFile, schema: Any, wanted: str | None) -> str | None:
    if wanted is not None and wanted not in schema.names:
        raise UserError(
            f"data.label_column: {printable(file.path)} has no column {printable(wanted)}; found {first_few(schema.names)}."
            f"{did_you_mean(wanted, schema.names)}"
        )
    return wanted or next((name for name in LABEL_COLUMNS if name in schema.names), None)


def _label(value: Any, file: ShardFile, column: str | None) -> tuple[str, str] | None:
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str | np.integer):
        raise UserError(
            f"{printable(file.path)}: column {column} has {shortened(repr(value))}; expected the number or the name of one class."
        )
    return "label", str(value).strip()
