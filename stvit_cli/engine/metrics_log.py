"""``metrics.jsonl``: a line for every logged step and every evaluation; truncated to the checkpoint when a run is resumed.

Strict JSON: a value that is not finite, such as the norm of a gradient that fp16's scaler drops, is null.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stvit_cli.utils import strict_json
from stvit_cli.utils.files import writing


class MetricsLog:
    """Rows are dicts with ``kind`` (train or eval), ``step`` and metrics."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        with writing(self.path), self.path.open("ab") as file:
            file.write(strict_json.dumps(row).encode() + b"\n")

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
            return is_complete

    def rows(self, kind: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        rows = [json.loads(line) for line in self.path.read_bytes().splitlines()]
        return [row for row in rows if row["kind"] == kind]


class TensorBoardLog:
    """The same rows as TensorBoard events."""

    def __init__(self, path: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with writing(path):
            # TensorBoard hides what a resumed run had written after its checkpoint.
            self.writer = SummaryWriter(str(path), purge_step=step)

    def add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("kind", "step"):
                self.writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        self.writer.close()
