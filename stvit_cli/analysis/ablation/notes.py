"""The sentences below an ablation's table: what a score is, how sure it is, what failed and what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from stvit_cli.analysis.ablation.results import RunResult
from stvit_cli.analysis.ablation.rows import Row
from stvit_cli.analysis.ablation.statistics import how_many_are_clear
from stvit_cli.utils.metric_names import metric_name
from stvit_cli.utils.text import first_few


def notes_on(rows: Sequence[Row]) -> list[str]:
    """Return the sentences below the table.

    Args:
        rows: the settings; the first is the one that the others are compared with.
    """
    results = [result for row in rows for result in row.results]
    notes = what_scores_are(results)
    if results:
        notes += _how_sure(rows)
        notes += _other_seeds(rows)
        notes += _mixed("version of stvit", sorted({result.version for result in results}))
        notes += _mixed("machine", sorted({result.machine for result in results}))
    return notes + _without_score(rows)


def what_scores_are(results: Sequence[RunResult]) -> list[str]:
    """Return sentences on the metric, the images and the weights that scores are of."""
    notes = []
    for metric, split, weights in dict.fromkeys((each.metric, each.split, each.weights) for each in results):
        of = "of the moving average of the weights" if weights == "ema" else "of the weights"
        when = (
            "of the best epoch on the validation images"
            if split == "test"
            else "after the last epoch: the best one would favour what fluctuates more"
        )
        notes.append(f"Scores are {metric_name(metric).label} in percent on the {split} images, {of} {when}.")
    return notes


def _how_sure(rows: Sequence[Row]) -> list[str]:
    most = max(len(row.scores) for row in rows)
    if most == 1:
        return ["One seed: how much another seed would change is unknown, and so is whether a difference is more than that."]
    notes = ["Intervals are 95 % of Student's t over the seeds; differences are paired by seed."]
    if most == 2:
        notes.append(
            "Two seeds: an interval is 12.7 standard errors to each side, so wide that few differences can stand out. "
            "With a third seed it is 4.3."
        )
    compared = [row for row in rows[1:] if row.difference is not None and row.difference.low is not None]
    clear = [row.setting.name for row in compared if row.difference is not None and row.difference.excludes_zero]
    if compared:
        notes += how_many_are_clear(clear, len(compared), f"differences from {rows[0].setting.name}")
    return notes


def _other_seeds(rows: Sequence[Row]) -> list[str]:
    baseline = rows[0].scores.keys()
    partial = [row.setting.name for row in rows[1:] if row.scores and row.scores.keys() != baseline]
    if not partial:
        return []
    return [f"Scores of other seeds than the first setting has: {first_few(partial)}. Differences use the shared seeds."]


def _mixed(what: str, values: Sequence[str]) -> list[str]:
    return [f"The runs have more than one {what}: {first_few(values)}."] if len(values) > 1 else []


def _without_score(rows: Sequence[Row]) -> list[str]:
    runs = [run for row in rows for run in row.runs]
    notes = []
    for run in runs:
        if run.failure is not None:
            line = run.failure.message.splitlines()[0] if run.failure.message else "no message"
            notes.append(f"{run.name} {run.failure.kind}: {line}")
    left = sum(run.status == "unfinished" for run in runs)
    return [*notes, *([f"{left} of {len(runs)} runs are not finished."] if left else [])]
