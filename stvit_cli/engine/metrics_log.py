"""``metrics.jsonl``: a line for every logged step, every evaluation, and the test set; truncated to the checkpoint when resumed.

``metrics.csv`` holds the same rows, its columns are all of their names.

Strict JSON: a value that is not finite, such as the norm of a gradient that fp16's scaler drops, is null.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stvit_cli.utils import strict_json
from stvit_cli.utils.files import replace_file, writing


class MetricsLog:
    """Rows are dicts with ``kind`` (train, eval or test), ``step`` and metrics."""

    def __init__(self, path: Path) -> None:
        self.path, self.csv_path = path, path.with_suffix(".csv")
        self._columns: dict[str, None] | None = None  # of the CSV file; None: it is not known to hold every row

    def append(self, row: dict[str, Any]) -> None:
        line = strict_json.dumps(row)
        with writing(self.path), self.path.open("ab") as file:
            file.write(line.encode() + b"\n")
        if self._columns is None or row.keys() - self._columns.keys():
            self.write_csv()
            return
        with writing(self.csv_path), self.csv_path.open("ab") as file:
            file.write(_csv_line(json.loads(line), self._columns).encode())

    def write_csv(self) -> None:
        """Write ``metrics.csv``: rows are appended to it from then on, until one has a new name."""
        rows = self._rows()
        self._columns = {name: None for row in rows for name in row}
        header = _csv_line({name: name for name in self._columns}, self._columns)
        with writing(self.csv_path):
            replace_file(self.csv_path, "".join([header, *(_csv_line(row, self._columns) for row in rows)]).encode())

    def size(self) -> int:
        """Wait until every line is on the disk, and return how many bytes that is; a checkpoint remembers it."""
        if not self.path.exists():
            return 0
        with writing(self.path), self.path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def truncate(self, size: int) -> bool:
        """Truncate the file to ``size`` bytes; return False if it is shorter than that."""
        with writing(self.path), self.path.open("ab") as file:
            is_complete = file.tell() >= size
            if is_complete:
                file.truncate(size)
        self.write_csv()
        return is_complete

    def last_steps(self) -> dict[str, int]:
        """Return the last step of each kind of row."""
        steps: dict[str, int] = {}
        for row in self._rows():
            steps[row["kind"]] = max(row["step"], steps.get(row["kind"], -1))
        return steps

    def rows(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self._rows() if row["kind"] == kind]

    def _rows(self) -> list[dict[str, Any]]:
        """Return every row. A line that a killed process left unfinished, or that was damaged since, is none."""
        rows = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows


def _csv_line(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    """Return a row of CSV: numbers as in JSON, an empty cell where there is no value."""
    cells = (row.get(name) for name in columns)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(
        "" if cell is None else cell if isinstance(cell, str) else json.dumps(cell) for cell in cells
    )
    return text.getvalue()
