"""The page of a comparison: its sections."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stvit_cli.analysis.comparison.images import image_sections
from stvit_cli.analysis.comparison.runs import ComparedRun
from stvit_cli.tasks.report_parts import ChartPart, Column, ReportSection, Series, TablePart, TextPart
from stvit_cli.utils.metric_names import metric_name, metric_with_unit
from stvit_cli.utils.text import shell_command

NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"

Rows = Sequence[Mapping[str, Any]]


def page_sections(
    runs: Sequence[ComparedRun], paired: Sequence[ComparedRun], notes: Sequence[str], summary: Rows, recipes: Rows, metrics: Rows
) -> list[ReportSection]:
    """Return the sections of the page.

    Args:
        runs: all runs, the baseline first.
        paired: those that were evaluated on the same images as it.
        notes: what cannot be compared.
        summary: see `Comparison.runs`.
        recipes: see `Comparison.recipes`.
        metrics: see `Comparison.metrics`.
    """
    sections = [_runs(summary, notes), _metrics(runs, paired, metrics)]
    sections += list(image_sections(runs[0], paired))
    curves = _curves(runs)
    if curves:
        sections.append(ReportSection("curves", "Curves", curves, intro="All runs over the epochs. A ring marks the best epoch."))
    sections.append(_recipes(runs, recipes))
    command = shell_command("stvit", "compare", *(run.path for run in runs))
    return [*sections, ReportSection("command", "Command", [TextPart([command], kind="code")])]


def _runs(summary: Rows, notes: Sequence[str]) -> ReportSection:
    columns = [
        *(Column(name) for name in ("run", "task", "model")),
        *(Column(name, "number") for name in ("epochs", "steps", f"{summary[0]['images']} images")),
        Column("directory"),
    ]
    keys = ("run", "task", "model", "epochs", "steps", "num_images", "path")
    table = TablePart(columns, [[row[key] for key in keys] for row in summary])
    warnings = [TextPart(list(notes), kind="warning")] if notes else []
    return ReportSection("runs", "Runs", [*warnings, table], intro="The first run is the baseline of the others.")


def metric_table(runs: Sequence[str], metrics: Rows, num_images: float) -> tuple[list[str], list[list[str]]]:
    """Return metrics side by side as texts: the heads of the columns and the rows.

    Args:
        runs: names, the baseline first.
        metrics: see `Comparison.metrics`.
        num_images: that the digits are for.
    """
    by_metric: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in metrics:
        by_metric.setdefault(row["metric"], {})[row["run"]] = row
    differs = [name for name in runs[1:] if any(row["difference"] is not None for row in metrics if row["run"] == name)]
    heads = ["metric", *(part for name in runs for part in ([name, "difference"] if name in differs else [name]))]
    rows = []
    for metric, of in by_metric.items():
        cells = [metric_name(metric).label]
        for name in runs:
            value = of[name]["value"]
            cells.append("-" if value is None else metric_with_unit(metric, value, num_images))
            if name in differs:
                cells.append(difference_text(of[name], num_images))
        rows.append(cells)
    return heads, rows


def recipe_table(runs: Sequence[str], recipes: Rows) -> tuple[list[str], list[list[str]]]:
    """Return the keys that differ as texts: the heads of the columns and a row for each key.

    Args:
        runs: names, the baseline first.
        recipes: see `Comparison.recipes`.
    """
    by_key: dict[str, dict[str, str]] = {}
    for row in recipes:
        by_key.setdefault(row["key"], {})[row["run"]] = row["value"]
    return ["key", *runs], [[key, *(values[name] for name in runs)] for key, values in by_key.items()]


def difference_text(row: Mapping[str, Any], num_images: float) -> str:
    """Return a difference with its interval and p-value.

    >>> row = {"metric": "top1", "unit": "%", "difference": 1.5, "low": -0.5, "high": 3.5, "p_value": 0.25}
    >>> difference_text(row, 1000)
    '+1.5 (-0.5 to +3.5), p = 0.25'
    """
    if row["difference"] is None:
        return ""
    digits = 3 if not row["unit"] else 1 if num_images < 1000 else 1 + (num_images >= 10_000)
    text = f"{row['difference']:+.{digits}f}"
    if row["low"] is not None:
        text += f" ({row['low']:+.{digits}f} to {row['high']:+.{digits}f})"
    if row["p_value"] is not None:
        text += ", p < 0.001" if row["p_value"] < 0.001 else f", p = {row['p_value']:.2g}"
    return text


def _unbroken(text: str) -> str:
    """Return a value that a phone's narrow columns part neither from its unit nor within its interval."""
    return re.sub(" (?![(p])", NO_BREAK_SPACE, text)


def _metrics(runs: Sequence[ComparedRun], paired: Sequence[ComparedRun], metrics: Rows) -> ReportSection:
    num_images = min((len(run.found.predictions.images) for run in runs if run.found is not None), default=0)
    heads, rows = metric_table([run.name for run in runs], metrics, num_images)
    cells = [[label, *map(_unbroken, row)] for label, *row in rows]
    note = (
        "Differences are from the baseline, with 95 % intervals by the bootstrap over the same images of both: one that holds 0 "
        "may be due to the choice of the images. "
    )
    if any(row["p_value"] is not None for row in metrics):
        note += "p: McNemar's exact test of top-1. "
    if runs[0].images == "test":
        note += "The images are those of the test set, on which nothing was chosen. "
    note += "That says nothing of what another training would change."
    return ReportSection("metrics", "Metrics", [TablePart([Column(head) for head in heads], cells, note=note if paired else "")])


def _curves(runs: Sequence[ComparedRun]) -> list[ChartPart]:
    """Return a chart for the loss, for each metric that is shown after an evaluation, and for the learning rate."""
    charts = [_chart("Training loss", "loss", [(run, run.train) for run in runs], "loss")]
    names = dict.fromkeys(
        name
        for run in runs
        for row in run.evals
        for name in row
        if name == "loss" or (metric_name(name).unit == "%" and metric_name(name).in_row and not name.startswith("ema_"))
    )
    for name in names:
        label = metric_name(name)
        y_label = f"{label.label} in %" if label.unit == "%" else label.label
        chosen = [(run, [_of_better(row, name) for row in run.evals]) for run in runs]
        charts.append(_chart(label.label, y_label, chosen, name, best=min if name == "loss" else max))
    charts.append(_chart("Learning rate", "learning rate", [(run, run.train) for run in runs], "lr"))
    return [chart for chart in charts if chart.series]


def _of_better(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an evaluation's row; of a metric of the weights and their moving average the better one."""
    values = [row[key] for key in (name, f"ema_{name}") if isinstance(row.get(key), int | float)]
    if not values:
        return row
    return {**row, name: (min if name == "loss" else max)(values)}


def _chart(
    title: str,
    y_label: str,
    rows_of: Sequence[tuple[ComparedRun, Rows]],
    name: str,
    best: Callable[[Sequence[float]], float] | None = None,
) -> ChartPart:
    series = []
    for run, rows in rows_of:
        points = [(float(row["epoch"]), row[name]) for row in rows if isinstance(row.get(name), int | float)]
        if not points:
            continue
        values = [float(value) for _, value in points]
        marked = None if best is None else values.index(best(values))
        series.append(Series(run.name, [epoch for epoch, _ in points], values, best=marked))
    return ChartPart(title, "epoch", y_label, series)


def _recipes(runs: Sequence[ComparedRun], recipes: Rows) -> ReportSection:
    if not recipes:
        return ReportSection("recipes", "Recipes", [TextPart(["The recipes are the same."])])
    heads, rows = recipe_table([run.name for run in runs], recipes)
    return ReportSection("recipes", "Recipes", [TablePart([Column(head) for head in heads], rows)], intro="The keys that differ.")
