"""Compare runs: recipes, metrics with paired intervals, and the images on which they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stvit_cli.analysis.comparison.result import Comparison
from stvit_cli.analysis.comparison.runs import ComparedRun, differing, open_runs, why_unpaired
from stvit_cli.analysis.comparison.sections import page_sections
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io
from stvit_cli.recipe.yaml import flow
from stvit_cli.tasks.bootstrap import mcnemar, paired_intervals
from stvit_cli.utils.metric_names import metric_name
from stvit_cli.utils.text import first_few

NOT_COMPARED = {"name", "description"}
"""Keys of a recipe that say nothing of the run."""


def compare_runs(paths: Sequence[Path], say: Callable[[str], None] = lambda line: None) -> Comparison:
    """Compare runs with the first of them.

    Args:
        paths: run directories, two or more.
        say: called with each warning.

    Raises:
        UserError: fewer than two, or a path is no run.
    """
    if len(paths) < 2:
        raise UserError("Compare what? Give two runs or more; the first one is the baseline.")
    runs = open_runs(paths, say)
    baseline, others = runs[0], runs[1:]
    unpaired = {run.name: why_unpaired(baseline, run) for run in others}
    notes = [f"{run.name} cannot be evaluated: {run.problem.splitlines()[0]}" for run in runs if run.problem]
    notes += [reason for reason in unpaired.values() if reason]
    notes += _test_notes(runs)
    notes += [
        f"{run.name} is the same run as {baseline.name}." for run in others if run.path.resolve() == baseline.path.resolve()
    ]
    paired = [run for run in others if not unpaired[run.name]]
    recipes, metrics = _recipes(runs), _metrics(runs, paired)
    images = [row for run in paired for row in _images(baseline, run)]
    summary = [_summary(run) for run in runs]
    return Comparison(summary, notes, recipes, metrics, images, page_sections(runs, paired, notes, summary, recipes, metrics))


def _test_notes(runs: Sequence[ComparedRun]) -> list[str]:
    """Return a line where only some runs can be compared on a test set."""
    tested = [run.name for run in runs if RunDir(run.path).evaluation_files("test").evaluation.is_file()]
    if not tested or runs[0].images == "test":
        return []
    return [
        f"The runs are compared on the validation images, which chose their weights: not all have predictions of the same test "
        f"images, as {first_few(tested)} has."
    ]


def _summary(run: ComparedRun) -> dict[str, Any]:
    steps = max((int(row["step"]) for row in (*run.train, *run.evals)), default=0)
    found = run.found
    return {
        "run": run.name,
        "path": str(run.path),
        "task": run.recipe.task,
        "model": run.recipe.model.name,
        "steps": steps,
        "epochs": max((float(row["epoch"]) for row in (*run.train, *run.evals)), default=0.0),
        "images": {"val": "validation", "test": "test"}[run.images],
        "num_images": None if found is None else len(found.predictions.images),
        "evaluated": found is not None,
    }


def _recipes(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Return the keys whose values differ, in the order of the schema, as YAML has the values."""
    settings = [recipe_io.flatten(run.recipe) for run in runs]
    rows = []
    for key in settings[0]:
        values = [own[key] for own in settings]
        if key not in NOT_COMPARED and any(value != values[0] for value in values):
            rows += [{"key": key, "run": run.name, "value": flow(value)} for run, value in zip(runs, values, strict=True)]
    return rows


def _metrics(runs: Sequence[ComparedRun], paired: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Return the metrics of all runs, with the differences of those that were evaluated on the same images as the first."""
    baseline = runs[0]
    values = {run.name: _values(run) for run in runs}
    differences = {run.name: _differences(baseline, run) for run in paired}
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(name for run in runs for name in values[run.name]):
        for run in runs:
            value = _number(values[run.name].get(name, math.nan))
            row: dict[str, Any] = {"metric": name, "run": run.name, "value": value, "unit": metric_name(name).unit}
            row |= {"baseline": None, "difference": None, "low": None, "high": None, "p_value": None}
            if run.name in differences:
                row |= {"baseline": baseline.name, **differences[run.name].get(name, {})}
            rows.append(row)
    return rows


def _values(run: ComparedRun) -> dict[str, float]:
    """Return a run's metrics: those of its evaluation, and what its predictions give beyond."""
    values = {name: value for name, value in run.metrics.items() if name != "num_images"}
    if run.found is not None:
        counted = run.statistics(np.ones(len(run.found.predictions.images), dtype=np.int64))
        values |= {name: value for name, value in zip(run.statistics.names, counted.tolist(), strict=True) if name not in values}
    return values


def _differences(a: ComparedRun, b: ComparedRun) -> dict[str, dict[str, float | None]]:
    assert a.found is not None
    found = paired_intervals(a.statistics, b.statistics, len(a.found.predictions.images))
    result = {
        name: {"difference": _number(each.value), "low": _number(each.low), "high": _number(each.high)}
        for name, each in found.items()
    }
    if "ece" in result:  # resampling makes it larger
        result["ece"] |= {"low": None, "high": None}
    if "top1" in result and a.scores is not None and b.scores is not None:
        right, also = a.scores.is_right, b.scores.is_right
        result["top1"]["p_value"] = mcnemar(int((right & ~also).sum()), int((~right & also).sum()))
    return result


def _images(a: ComparedRun, b: ComparedRun) -> list[dict[str, Any]]:
    """Return the images on which two runs differ, the largest differences first."""
    assert a.found is not None
    assert a.scores is not None
    assert b.scores is not None
    names = a.found.predictions.images
    return [
        {
            "image": names[index],
            "run": b.name,
            "baseline": a.name,
            "score": float(b.scores.score[index]),
            "baseline_score": float(a.scores.score[index]),
            "truth": a.scores.describe_truth(index),
            "predicted": b.scores.describe(index),
            "baseline_predicted": a.scores.describe(index),
        }
        for index in differing(a, b)
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
