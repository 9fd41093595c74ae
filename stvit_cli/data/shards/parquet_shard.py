"""Parquet files with encoded images and labels, as the Hugging Face Hub has them. Imports no torch.

Parquet has no random access to a row: its row group is read, and the last ones are kept. Hugging Face's files have 100 images in
a row group, so that a single image costs the reading of 100; with ``data.shuffle=block`` the others are used too.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from stvit_cli.data.shards.part import Part, PartBuilder
from stvit_cli.data.shards.storage import ShardFile, file_system, is_remote, remote
from stvit_cli.data.table_file import class_labels, holds_images
from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean, first_few, first_line, printable, shortened

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
    arrow = _arrow(file)
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
                values = content.read_row_group(group, columns=[label])[label].to_pylist()
            for row, value in enumerate(values):
                found.add(group, row, _label(value, file, label))
    except (arrow.ArrowException, OSError, MemoryError) as error:
        return found.finished(problem=f"it cannot be read as Parquet: {shortened(first_line(error), 160)}")
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
    arrow = _arrow(file)
    try:
        cells = _GROUPS.images(file, group, image_column)
        value = cells[row].as_py()
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{printable(file.path)} cannot be read as Parquet: {shortened(first_line(error), 160)}.") from None
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise UserError(f"{printable(file.path)}, row group {group}, row {row}: there are no bytes of an image.")
    return content


class _RowGroups:
    """The row groups that a process read last, and its open files."""

    def __init__(self) -> None:
        self.lock, self.process = threading.Lock(), os.getpid()
        self.files: OrderedDict[str, tuple[Any, str]] = OrderedDict()
        self.groups: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def images(self, file: ShardFile, group: int, image_column: str | None) -> Any:
        if self.process != os.getpid():  # handles and threads of another process
            self.__init__()  # type: ignore[misc]
        with self.lock:
            key = (file.path, group)
            if key not in self.groups:
                opened = self.files.get(file.path)
                if opened is None:
                    content = _opened(file)
                    opened = self.files[file.path] = (content, _image_column(file, content.schema_arrow, image_column))
                self.files.move_to_end(file.path)
                self.groups[key] = opened[0].read_row_group(group, columns=[opened[1]])[opened[1]]
            self.groups.move_to_end(key)
            while len(self.groups) > MAX_ROW_GROUPS:
                self.groups.popitem(last=False)
            while len(self.files) > MAX_FILES:
                self.files.popitem(last=False)
            return self.groups[key]


_GROUPS = _RowGroups()


def _arrow(file: ShardFile) -> Any:
    try:
        import pyarrow as arrow
    except ImportError:
        raise UserError(
            f"{printable(file.path)} is a Parquet file, which needs pyarrow. Get it with: pip install 'stvit[shards]'"
        ) from None
    return arrow


def _opened(file: ShardFile) -> Any:
    from pyarrow import parquet

    if not is_remote(file.path):
        return parquet.ParquetFile(file.path)
    files, path = file_system(file.path)
    return parquet.ParquetFile(remote(file.path, lambda: files.open(path, "rb", block_size=1 << 20)))


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
