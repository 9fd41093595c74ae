"""Tables as CSV or Parquet files: written atomically, read back exactly."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stvit_cli.errors import UserError
from stvit_cli.utils.environment import is_installed
from stvit_cli.utils.files import replacing, writing
from stvit_cli.utils.text import did_you_mean, printable

if TYPE_CHECKING:
    from typing import TypeAlias

    from stvit_cli.tasks.base import ImagePrediction

Column: TypeAlias = "Sequence[str | None] | NDArray[Any]"
"""Texts, or an array of numbers or booleans; where a masked array is masked the cell is empty."""

ENDINGS = (".csv", ".parquet")
CSV_ROWS = 10_000  # formatted at once: a table of millions of rows takes little memory beside its columns
_ESCAPE, _SHIFT = "\uf8ff", 0xE000 - 0xD800
_SURROGATE, _ESCAPED = re.compile(f"[\ud800-\udfff{_ESCAPE}]"), re.compile(f"{_ESCAPE}(.)")


def require_table_name(path: Path) -> None:
    """Raise UserError where ``path`` names no CSV or Parquet file, or Parquet is not possible: before the work, not after it."""
    if path.suffix not in ENDINGS:
        near = did_you_mean(path.suffix, ENDINGS)
        raise UserError(f"{path}: expected a name that ends in {' or '.join(ENDINGS)}.{near}")
    if path.suffix == ".parquet" and not is_installed("pyarrow"):
        raise UserError(f"{path}: Parquet needs pyarrow; install it with pip install 'stvit[tables]', or choose {path.stem}.csv.")


def write_table(path: Path, columns: Mapping[str, Column]) -> None:
    """Write columns of equal length: as Parquet where ``path`` ends so, else as CSV (UTF-8, RFC 4180, empty cells for None).

    Numbers are written so that they are read back exactly. Texts that are no Unicode, such as names of files in another encoding,
    are written with private characters in place of their bytes.

    Raises:
        UserError: the file cannot be written, or pyarrow is missing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "scores.csv"
        >>> write_table(path, {"image": ["a.png", "b, c.png"], "score": np.array([0.1, 1], np.float32)})
        >>> print(path.read_text(), end="")
        image,score
        a.png,0.1
        "b, c.png",1.0
    """
    require_table_name(path)
    with writing(path), replacing(path) as temporary:
        if path.suffix == ".parquet":
            _write_parquet(temporary, columns)
        else:
            _write_csv(temporary, columns)


def read_table(path: Path) -> Table:
    """Read what `write_table` wrote.

    Raises:
        UserError: the file is missing or damaged, or pyarrow is.
    """
    require_table_name(path)
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            # Not by its path: pyarrow takes one for a data set in Hive's layout where a folder's name has an equals sign.
            with path.open("rb") as file:
                content = parquet.read_table(file)
            return Table(path, {name: _values(content.column(name)) for name in content.column_names})
        with path.open(newline="", encoding="utf-8") as text:
            header, *rows = csv.reader(text)
        if any(len(row) != len(header) for row in rows):
            raise ValueError("rows differ in length")
        columns = list(zip(*rows, strict=True)) if rows else [() for _ in header]
        return Table(path, {name: list(column) for name, column in zip(header, columns, strict=True)})
    except OSError as error:
        if error.errno is None:  # pyarrow's own, about the content
            raise UserError(f"{path} is damaged: {error}.") from None
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors too
        raise UserError(f"{path} is damaged: {printable(str(error))[:200]}.") from None


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows whose values are texts, numbers or None; the columns are all of their names. Raises as `write_table` does.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.csv"
        >>> write_rows(path, [{"image": "a.png", "rank": 1}, {"image": "b.png", "rank": None, "error": "no image"}])
        >>> path.read_text().splitlines()
        ['image,rank,error', 'a.png,1,', 'b.png,,no image']
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_table(path, {name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: Sequence[Any]) -> Column:
    known = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in known) or not known:
        return [None if value is None else str(value) for value in values]
    empty = [value is None for value in values]
    column: NDArray[Any] = np.ma.masked_array([known[0] if value is None else value for value in values], mask=empty)
    return column


def table_rows(prediction: ImagePrediction, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the rows of an image's prediction; see `tasks.base.ImagePrediction.to_rows`.

    Args:
        prediction: of the image.
        names: of the columns; the first is that of the image.
        rows: the values of the other columns.
    """
    image, nothing = None if prediction.path is None else str(prediction.path), [None] * (len(names) - 1)
    return [dict(zip(names, (image, *row), strict=True)) | {"error": prediction.error} for row in rows or [nothing]]


class Table:
    """The columns of a file, by name and in its order."""

    def __init__(self, path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
        self.path, self._columns = path, columns

    @property
    def names(self) -> list[str]:
        return list(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    def texts(self, name: str) -> list[str]:
        """Return a column of texts; an empty cell is an empty text. Raises UserError where it is not there."""
        return [_ESCAPED.sub(_unescaped, value) if value else "" for value in self._column(name)]

    def numbers(self, name: str, dtype: Any, missing: float = 0) -> NDArray[Any]:
        """Return a column of numbers or booleans as an array (N,).

        Args:
            name: of the column.
            dtype: of the array.
            missing: stands for an empty cell.

        Raises:
            UserError: it is not there, or holds something else.
        """
        values = self._column(name)
        if isinstance(values, np.ndarray):
            return values.astype(dtype)
        filled = [missing if value is None or value == "" else value for value in values]
        try:
            if np.dtype(dtype) == np.bool_:
                return np.array([value in (True, "true") for value in filled], dtype=np.bool_)
            if np.issubdtype(dtype, np.integer):
                return np.array([int(value) for value in filled], dtype=dtype)
            return np.array([float(value) for value in filled], dtype=dtype)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{self.path}, column {name}: {printable(str(error))[:200]}.") from None

    def _column(self, name: str) -> Sequence[Any]:
        if name not in self._columns:
            near = did_you_mean(name, self.names)
            raise UserError(f"{self.path} has no column '{name}'; expected a file as an evaluation writes it.{near}")
        return self._columns[name]


def _values(column: Any) -> Any:
    """Return a column of Parquet: an array where every cell is a number, else a list."""
    import pyarrow as arrow

    if column.null_count or arrow.types.is_string(column.type) or arrow.types.is_null(column.type):
        return column.to_pylist()
    return column.to_numpy()


def _write_parquet(path: Path, columns: Mapping[str, Column]) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    arrays = {}
    for name, values in columns.items():
        if isinstance(values, np.ma.MaskedArray):
            arrays[name] = arrow.array(values.data, mask=np.ma.getmaskarray(values))
        elif isinstance(values, np.ndarray):
            arrays[name] = arrow.array(values)
        else:
            arrays[name] = arrow.array([escaped(value) for value in values], type=arrow.string())
    with path.open("wb") as file:
        parquet.write_table(arrow.table(dict(zip(map(escaped, arrays), arrays.values(), strict=True))), file, compression="zstd")


def _write_csv(path: Path, columns: Mapping[str, Column]) -> None:
    length = len(next(iter(columns.values()), ()))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(escaped, columns))
        for start in range(0, length, CSV_ROWS):
            part = slice(start, start + CSV_ROWS)
            writer.writerows(zip(*(_cells(values[part]) for values in columns.values()), strict=True))


def _cells(values: Column) -> Sequence[str | None]:
    """Return the texts of cells; the shortest that is read back as the same number."""
    if not isinstance(values, np.ndarray):
        return [escaped(value) for value in values]
    numbers = np.ma.getdata(values)
    texts = [str(value).lower() for value in numbers.tolist()] if numbers.dtype == np.bool_ else numbers.astype(str).tolist()
    if isinstance(values, np.ma.MaskedArray):
        return [None if is_empty else text for text, is_empty in zip(texts, np.ma.getmaskarray(values).tolist(), strict=True)]
    cells: list[str] = texts
    return cells


def escaped(text: str | None) -> str | None:
    """Return a text as `write_table` writes it: one that UTF-8 can hold. `Table.texts` reverses it."""
    if text is None or text.isascii():
        return text
    return _SURROGATE.sub(lambda match: _ESCAPE + (match[0] if match[0] == _ESCAPE else chr(ord(match[0]) + _SHIFT)), text)


def _unescaped(match: re.Match[str]) -> str:
    return match[1] if match[1] == _ESCAPE else chr(ord(match[1]) - _SHIFT)
