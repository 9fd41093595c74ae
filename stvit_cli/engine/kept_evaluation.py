"""The evaluation of a run's best weights: ``evaluation.json`` and the table of predictions beside it.

That of the test set has the same files with ``-test`` in their names.

The files are written one after the other: the weights, the predictions, ``evaluation.json``. It holds the hashes of the other
two, so that what is left by a run that was killed between them, or by weights that were replaced, is never taken for theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvit_cli.engine.evaluation import Evaluated
from stvit_cli.engine.run_dir import RunDir, Subset
from stvit_cli.errors import UserError
from stvit_cli.tasks.predictions import Predictions
from stvit_cli.utils import strict_json
from stvit_cli.utils.environment import is_installed
from stvit_cli.utils.files import replace_file, writing

FORMAT = 1
"""Of ``evaluation.json``; a file of a newer one is not read, and the run is evaluated again."""


@dataclass(frozen=True)
class KeptEvaluation:
    """What ``evaluation.json`` says of the best weights that lie beside it.

    Attributes:
        task: classification, detection or segmentation.
        step: of the evaluation; None: it was made after the run.
        metrics: by name.
        class_names: of the model.
        predictions: the table.
    """

    task: str
    step: int | None
    metrics: dict[str, float]
    class_names: tuple[str, ...]
    predictions: Path


def write_evaluation(
    run_dir: RunDir,
    task: str,
    step: int | None,
    evaluated: Evaluated,
    class_names: Sequence[str],
    *,
    of: Subset = "val",
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write what was found of ``best.safetensors``, which is written already.

    Args:
        run_dir: of the run.
        task: its task's name.
        step: of the evaluation; None: it was made after the run.
        evaluated: what was found.
        class_names: of the model, where there are no predictions that name them.
        of: the images that it was made on.
        facts: what else to write about it.

    Raises:
        UserError: a file cannot be written.
    """
    file, parquet, csv = run_dir.evaluation_files(of)
    predictions, table = evaluated.predictions, parquet if is_installed("pyarrow") else csv
    if predictions is not None:
        predictions.write(table)
    content: dict[str, Any] = {
        "format": FORMAT,
        "task": task,
        "step": step,
        "precision": evaluated.precision,
        "weights": {"file": run_dir.best.name, "blake2b": file_hash(run_dir.best)},
        "predictions": None if predictions is None else {"file": table.name, "blake2b": file_hash(table)},
        "num_images": evaluated.metrics.get("num_images"),
        "metrics": evaluated.metrics,
        "class_names": list(class_names if predictions is None else predictions.class_names),
        **(facts or {}),
    }
    with writing(file):
        replace_file(file, strict_json.dumps(content, indent=2).encode() + b"\n")
    with writing(run_dir.path):
        for other in {parquet, csv} - ({table} if predictions is not None else set()):
            other.unlink(missing_ok=True)


def read_content(run_dir: RunDir, of: Subset) -> dict[str, Any] | None:
    """Return what was written about an evaluation of ``best.safetensors``, as it is in the file; None where nothing is.

    Args:
        run_dir: of the run.
        of: the images that it was made on.
    """
    try:
        content: dict[str, Any] = json.loads(run_dir.evaluation_files(of).evaluation.read_bytes())
        return content if content["format"] == FORMAT and content["weights"]["blake2b"] == file_hash(run_dir.best) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, of an earlier version, or edited
        return None


def read_evaluation(run_dir: RunDir, precision: str = "fp32", *, of: Subset = "val") -> KeptEvaluation | None:
    """Return what is kept of the evaluation of ``best.safetensors``; None where nothing is.

    Args:
        run_dir: of the run.
        precision: what the model computed in; of an evaluation in another precision, or of other weights, nothing is returned.
        of: the images that it was made on.
    """
    content = read_content(run_dir, of)
    if content is None:
        return None
    try:
        if content.get("precision", "fp32") != precision:  # 0.2 did not say it: fp32
            return None
        table = run_dir.path / Path(content["predictions"]["file"]).name
        if content["predictions"]["blake2b"] != file_hash(table):
            return None
        return KeptEvaluation(str(content["task"]), content["step"], metrics_of(content), tuple(content["class_names"]), table)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, of an earlier version, or edited
        return None


def metrics_of(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics in what `read_content` returned; strict JSON has null for what is not a number."""
    return {str(name): float("nan") if value is None else value for name, value in content["metrics"].items()}


def read_kept(
    run_dir: RunDir, read: Callable[[Path, Sequence[str]], Predictions], *, of: Subset = "val"
) -> tuple[KeptEvaluation, Predictions] | None:
    """Return what is kept of the evaluation of ``best.safetensors`` with its predictions; None as `read_evaluation` does.

    Args:
        run_dir: of the run.
        read: reads the table of the task's predictions.
        of: the images that it was made on.
    """
    kept = read_evaluation(run_dir, of=of)
    if kept is None:
        return None
    try:
        return kept, read(kept.predictions, kept.class_names)
    except UserError:  # Parquet, and no pyarrow here
        return None


def file_hash(*paths: Path) -> str:
    """Return a hash of the content of files, one after the other. Raises OSError."""
    found = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: found)
    return found.hexdigest()
