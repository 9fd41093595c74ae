"""What trackers on this machine were told: the (kind, step) of every row, read by their own libraries from what they keep."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768

Points = list[tuple[str, int]]

LEADING = {"train": "train/loss", "eval": "eval/top1"}
"""A metric that every row of a kind has."""


def tensorboard_points(run_dir: Path, folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "events"))
    events.Reload()
    return [(kind, event.step) for kind, name in LEADING.items() for event in events.Scalars(name)]


def mlflow_points(run_dir: Path, folder: Path) -> Points:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("stvit").experiment_id])
    return [(kind, one.step) for kind, name in LEADING.items() for one in client.get_metric_history(run.info.run_id, name)]


def trackio_points(run_dir: Path, folder: Path) -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("stvit")
    rows = SQLiteStorage.get_logs("stvit", name)
    return [(kind, row["step"]) for row in rows for kind, leading in LEADING.items() if leading in row]


def wandb_points(run_dir: Path, folder: Path) -> Points:
    points = []
    for record in wandb_records(run_dir):
        if record.WhichOneof("record_type") == "history":
            names = {item.key or "/".join(item.nested_key) for item in record.history.item}
            points += [(kind, record.history.step.num) for kind, leading in LEADING.items() if leading in names]
    return points


def wandb_records(run_dir: Path) -> list[Any]:
    """Return the records that an offline run would upload."""
    from wandb.proto.wandb_internal_pb2 import Record

    return [Record.FromString(data) for path in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb")) for data in _log(path)]


def _log(path: Path) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, which begins with seven bytes of W&B's own."""
    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        rest = BLOCK - at % BLOCK
        if rest < 7:
            at += rest
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""
