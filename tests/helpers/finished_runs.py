"""Run directories as a finished training leaves them, in milliseconds: recipe, environment and metrics, without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.recipe import Recipe

ENVIRONMENT = {
    "command": ["stvit", "train"],
    "device": "cpu",
    "threads": 1,
    "processor": "a processor",
    "parameters": 1234,
    "versions": {"stvit": "0.2.0"},
}


def write_run(
    path: Path,
    recipe: Recipe,
    top1: float,
    *,
    steps: int = 20,
    test: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    **others: Any,
) -> None:
    """Write a run of ``steps`` steps at 100 images per second, with one evaluation of 6 seconds at its end.

    Args:
        path: the run directory.
        recipe: of the run.
        top1: in percent, at the end.
        steps: taken so far; the run is finished where that is what its recipe says.
        test: metrics on the test split.
        environment: what differs from `ENVIRONMENT`.
        others: more metrics of the last evaluation.
    """
    files = RunDir(path)
    path.mkdir(parents=True, exist_ok=True)
    files.write_recipe(recipe)
    files.environment.write_text(json.dumps(ENVIRONMENT | dict(environment or {})))
    files.metrics.unlink(missing_ok=True)
    log, epochs = MetricsLog(files.metrics), recipe.schedule.epochs
    for step in range(steps // 2, steps + 1, steps // 2):
        log.append({"kind": "train", "step": step, "epoch": epochs * step / 20, "loss": 1.0, "images_per_second": 100.0})
    if steps == 20:
        end = {"step": steps, "epoch": float(epochs)}
        log.append({"kind": "eval", **end, "top1": top1, "loss": 0.5, "num_images": 100, "seconds": 6.0, **others})
        if test is not None:
            log.append({"kind": "test", **end, **test})
