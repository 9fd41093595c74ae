"""An experiment of two settings, and run directories as trainings leave them. Not a test; the tests of `reproduce` import it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stvit_cli.analysis.reproduce import experiments
from stvit_cli.analysis.reproduce.found_run import FoundRun
from stvit_cli.recipe import io as recipe_io

SMALL = """
title: Small
question: Which is better?
recipe: quickstart
overrides: {schedule.epochs: 2}
score: last
metrics: [top1]
seeds: 2
extra_seed: true
minutes: 1
settings:
  base: {}
  wide: {overrides: {augment.hflip: 0.5}, published: 90.5}
"""


def write_run(path: Path, setting: experiments.Setting, seed: int, top1: float, *, epoch: float = 2.0, **row: Any) -> FoundRun:
    """Write what a run leaves: ten steps of 64 images at 32 a second, and an evaluation of four seconds."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(recipe_io.dump(setting.of_seed(seed)))
    environment = {"started": "2026-01-02T03:04:05+0000", "cores": 2, "threads": 1, "versions": {"stvit": "0.2.0"}}
    (path / "environment.json").write_text(json.dumps(environment | {"device": "cpu", "processor": "EPYC with AVX2"}))
    batch = setting.recipe.train.global_batch_size
    rows = [
        {"kind": "train", "step": 10, "epoch": epoch, "images_per_second": 0.5 * batch},
        {"kind": "eval", "step": 10, "epoch": epoch, "num_images": 360, "top1": top1, "seconds": 4.0, **row},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FoundRun(path, recipe_io.load(path / "recipe.yaml"))
