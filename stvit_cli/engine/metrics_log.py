"""``metrics.jsonl``: a line for every logged step and every evaluation; cut back to the checkpoint when a run is resumed.

Strict JSON: a value that is not finite, such as the norm of a gradient that fp16's scaler drops, is null.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stvit_cli.utils import strict_json
from stvit_cli.utils.files import writing


class History:
    """Rows are dicts with ``kind`` (train or eval), ``step`` and figures."""

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

    def cut(self, size: int) -> bool:
        """Drop what was written after the first ``size`` bytes; return whether all of those are there."""
        with writing(self.path), self.path.open("ab") as file:
            whole = file.tell() >= size
            if whole:
                file.truncate(size)
            return whole

    def rows(self, kind: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        rows = [json.loads(line) for line in self.path.read_bytes().splitlines()]
        return [row for row in rows if row["kind"] == kind]


class Board:
    """TensorBoard events of the same rows."""

    def __init__(self, path: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with writing(path):
            # What a run that is resumed had written after its checkpoint is not shown.
            self.writer = SummaryWriter(str(path), purge_step=step)

    def add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("kind", "step"):
                self.writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        self.writer.close()
