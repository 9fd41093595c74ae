"""Tables from files: CSV and TSV, JSON Lines, Parquet. Imports no torch.

A cell is text: a number as it is written, a list as JSON, nothing as "". Every row knows its file and its line.
"""

from __future__ import annotations

import csv
import gc
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.class_names import read_text
from stvit_cli.data.images import ENDINGS as IMAGE_ENDINGS
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few, first_line, printable, shortened

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")

DELIMITERS = ",;\t|"
"""Tried for a CSV file; the one that the first line has most of is taken."""


@dataclass(frozen=True)
class Table:
    """Rows of one file, or of several with the same columns.

    Attributes:
        files: the files that the rows are of.
        columns: the cells of each column, by its name.
        file_of: for each row, the position of its file, (N,).
        lines: for each row, its line in a text file (the header is line 1), or its row in a Parquet file from 1, (N,).
        names: class names of a column of integers, where the file has them (Hugging Face's ClassLabel).
        images: columns of embedded images, as Arrow's chunked arrays of ``{bytes, path}`` or of bytes.
        notes: remarks for the user.
    """

    files: tuple[Path, ...]
    columns: dict[str, Sequence[str]]
    file_of: NDArray[np.int32]
    lines: NDArray[np.int64]
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """Return what messages call a row: its file and its line."""
        file = self.files[self.file_of[row]]
        return f"{printable(str(file))}, {'row' if file.suffix.lower() == '.parquet' else 'line'} {self.lines[row]}"

    def take(self, rows: NDArray[np.int64]) -> Table:
        """Return some of the rows."""
        numbers = rows.tolist()
        return Table(
            self.files,
            {name: [cells[row] for row in numbers] for name, cells in self.columns.items()},
            self.file_of[rows],
            self.lines[rows],
            self.names,
            {name: cells.take(rows) for name, cells in self.images.items()},
            self.notes,
        )


def read_tables(paths: Sequence[Path], key: str = "data.table") -> Table:
    """Return the rows of one or more files.

    Args:
        paths: files that end in `ENDINGS`, with the same columns.
        key: the recipe key that names them, for messages.

    Raises:
        UserError: a file cannot be read or parsed, has no rows, or columns that the first does not have.
    """
    with _without_collection():
        tables = [_read(path, key) for path in paths]
    first = tables[0]
    for table in tables[1:]:
        if list(table.columns) != list(first.columns) or list(table.images) != list(first.images) or table.names != first.names:
            raise UserError(
                f"{printable(str(table.files[0]))} has other columns than {printable(str(first.files[0]))}: "
                f"{first_few([*table.columns, *table.images])}; expected {first_few([*first.columns, *first.images])}."
            )
    if len(tables) == 1:
        return first
    return Table(
        tuple(table.files[0] for table in tables),
        {name: [cell for table in tables for cell in table.columns[name]] for name in first.columns},
        np.concatenate([np.full(len(table), index, dtype=np.int32) for index, table in enumerate(tables)]),
        np.concatenate([table.lines for table in tables]),
        first.names,
        {name: _chunks([table.images[name] for table in tables]) for name in first.images},
        tuple(note for table in tables for note in table.notes),
    )


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause the search for reference cycles: over millions of rows, which have none, it takes longer than reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(path: Path, key: str) -> Table:
    ending = path.suffix.lower()
    if ending == ".parquet":
        table = _read_parquet(path, key)
    elif ending == ".jsonl":
        table = _read_json_lines(path, key)
    elif ending in (".csv", ".tsv", ".txt"):
        table = _read_csv(path, key)
    else:
        raise UserError(f"{key}: {printable(str(path))}: expected a file that ends in {', '.join(ENDINGS)}.")
    if not len(table):
        raise UserError(f"{printable(str(path))} has no rows below its header.")
    return table


def _table(path: Path, columns: dict[str, Sequence[str]], lines: Sequence[int] | NDArray[np.int64], **more: Any) -> Table:
    return Table((path,), columns, np.zeros(len(lines), dtype=np.int32), np.asarray(lines, dtype=np.int64), **more)


def _read_csv(path: Path, key: str) -> Table:
    text, shown = read_text(path, key), printable(str(path))
    start = next((line for line in io.StringIO(text) if line.strip()), "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=start.count)
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{shown}, line {reader.line_num}: cannot be parsed: {error}.") from None
    if not rows:
        raise UserError(f"{shown} is empty; expected a header with the names of the columns, and a row for each image.")
    header, notes = [name.strip() for name in rows[0]], []
    if names_image(header):
        header = _names_without_header(header)
        notes = [f"{shown}: its first line is an image already, so the columns are called {first_few(header)}."]
        rows, lines = [header, *rows], [0, *lines]
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise UserError(f"{shown}: its first line names the column '{shortened(twice[0])}' twice.")
    width = len(header)
    for position, row in enumerate(rows):
        if len(row) != width:
            if len(row) < width or any(row[width:]):
                raise UserError(
                    f"{shown}, line {lines[position]}: {len(row)} cells, but the first line names {width} columns: "
                    f"{first_few(header)}."
                )
            rows[position] = row[:width]
    cells = list(zip(*rows[1:], strict=True)) or [()] * width
    return _table(
        path,
        {name: list(map(str.strip, column)) for name, column in zip(header, cells, strict=True)},
        lines[1:],
        notes=tuple(notes),
    )


def names_image(cells: Sequence[str]) -> bool:
    """Return whether a cell is the path of an image.

    >>> names_image(["images/1.JPG", "cat"]), names_image(["path", "label"])
    (True, False)
    """
    return any(cell.strip().lower().endswith(IMAGE_ENDINGS) for cell in cells)


def _names_without_header(first: Sequence[str]) -> list[str]:
    """Return names of columns for a table without a header: path, and label where there is only one other."""
    path = next(position for position, cell in enumerate(first) if names_image([cell]))
    others = "label" if len(first) == 2 else "column {}"
    return ["path" if position == path else others.format(position + 1) for position in range(len(first))]


def _read_json_lines(path: Path, key: str) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(read_text(path, key).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{printable(str(path))}, line {number}: this is not JSON: {shortened(str(error))}.") from None
        if not isinstance(row, dict):
            raise UserError(f'{printable(str(path))}, line {number}: expected a JSON object such as {{"file_name": "1.jpg"}}.')
        rows.append(row)
        lines.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    return _table(path, {name: [_cell(row.get(name)) for row in rows] for name in names}, lines)


def _cell(value: Any) -> str:
    """Return a value of JSON or Arrow as the text of a cell."""
    if value is None or value != value:  # NaN, as pandas writes what is missing
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return json.dumps(value, default=str)


def _read_parquet(path: Path, key: str) -> Table:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{key}: {printable(str(path))} is a Parquet file, which needs pyarrow. Get it with: pip install 'stvit[tables]'"
        ) from None
    if not path.is_file():
        raise UserError(f"{key}: there is no file {printable(str(path))}.")
    try:
        content = parquet.read_table(path)
    except (arrow.ArrowException, OSError, MemoryError) as error:
        reason = shortened(first_line(error), 160)
        raise UserError(f"{printable(str(path))} cannot be read as Parquet: {reason}.") from None
    images = {field.name: content[field.name] for field in content.schema if holds_images(arrow, field.type)}
    others = [name for name in content.column_names if name not in images]
    columns: dict[str, Sequence[str]] = {name: [_cell(value) for value in content[name].to_pylist()] for name in others}
    names = class_labels(content.schema.metadata or {})
    return _table(path, columns, np.arange(1, content.num_rows + 1), names=names, images=images)


def holds_images(arrow: Any, kind: Any) -> bool:
    """Return whether an Arrow type is that of encoded images: bytes, or Hugging Face's struct of bytes and a path."""
    if arrow.types.is_struct(kind):
        return any(holds_images(arrow, kind.field(index).type) for index in range(kind.num_fields))
    return bool(arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind))


def _chunks(columns: Sequence[Any]) -> Any:
    import pyarrow as arrow

    return arrow.chunked_array([chunk for column in columns for chunk in column.chunks], type=columns[0].type)


def class_labels(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the names of Hugging Face's ClassLabel columns, also of lists of them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {}
        for column, feature in features.items():
            while isinstance(feature, dict) and "feature" in feature:
                feature = feature["feature"]
            if isinstance(feature, list) and len(feature) == 1:
                feature = feature[0]
            names = feature.get("names") if isinstance(feature, dict) else None
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                found[column] = tuple(names)
        return found
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
