"""The page of a comparison: its sections."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from stvit_cli import tasks
from stvit_cli.analysis.comparison.runs import ComparedRun
from stvit_cli.data.thumbnails import image_kind, thumbnail
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import read_info
from stvit_cli.tasks.report_parts import (
    ChartPart,
    Column,
    GalleryPart,
    Part,
    ReportSection,
    Series,
    ShownImage,
    TablePart,
    TextPart,
    Thumbnail,
)
from stvit_cli.utils.metric_names import metric_name, metric_with_unit
from stvit_cli.utils.text import shell_command

MAX_SHOWN = 24
"""Images of a gallery."""
MAX_LISTED = 200
"""Images of the table where none can be opened."""

NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"

Rows = Sequence[Mapping[str, Any]]


@runtime_checkable
class HasImages(Protocol):
    """A validation set that can open its images."""

    @property
    def images(self) -> Opens: ...


class Opens(Protocol):
    """Images by index."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Image.Image: ...


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
    sections += list(_images(runs[0], paired))
    curves = _curves(runs)
    if curves:
        sections.append(ReportSection("curves", "Curves", curves, intro="All runs over the epochs. A ring marks the best epoch."))
    sections.append(_recipes(runs, recipes))
    command = shell_command("stvit", "compare", *(run.path for run in runs))
    return [*sections, ReportSection("command", "Command", [TextPart([command], kind="code")])]


def _runs(summary: Rows, notes: Sequence[str]) -> ReportSection:
    columns = [
        *(Column(name) for name in ("run", "task", "model")),
        *(Column(name, "number") for name in ("epochs", "steps", "validation images")),
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
        "may be due to the choice of the images. p: McNemar's exact test of top-1. "
        "Neither says what another training would change."
    )
    return ReportSection("metrics", "Metrics", [TablePart([Column(head) for head in heads], cells, note=note if paired else "")])


def _images(baseline: ComparedRun, paired: Sequence[ComparedRun]) -> Iterator[ReportSection]:
    for number, run in enumerate(paired, start=1):
        assert baseline.scores is not None
        assert run.scores is not None
        difference = run.scores.score - baseline.scores.score
        certainty = run.scores.certainty + baseline.scores.certainty
        order = np.lexsort((-certainty, -np.abs(difference)))
        better = [index for index in order.tolist() if difference[index] > 0]
        worse = [index for index in order.tolist() if difference[index] < 0]
        title = f"{run.name} and {baseline.name}: images"
        if not better and not worse:
            lines = [TextPart([f"Both are equally right about all {len(difference)} images."])]
            yield ReportSection(f"images-{number}", title, lines)
            continue
        opened = _opener(baseline)
        is_binary = not run.scores.what
        verb, other = ("right", "wrong") if is_binary else ("better", "worse")
        what = "" if is_binary else f" By {run.scores.what}, the largest difference first."
        parts: list[Part] = []
        for indices, first, second in ((better, run.name, baseline.name), (worse, baseline.name, run.name)):
            name = f"{first} {verb}, {second} {other}" if is_binary else f"{first} {verb} than {second}"
            parts.append(_gallery(f"{name}: {len(indices)}", indices, baseline, run, opened, what.strip()))
        equal = len(difference) - len(better) - len(worse)
        alone = " alone" if is_binary else ""
        intro = f"Of {len(difference)} images: {run.name}{alone} is {verb} about {len(better)}, "
        intro += f"{baseline.name}{alone} about {len(worse)}, "
        both = int((run.scores.is_right & baseline.scores.is_right).sum())
        intro += f"both are right about {both} and wrong about {equal - both}." if is_binary else f"{equal} are equal."
        yield ReportSection(f"images-{number}", title, parts, intro=intro)


def _gallery(
    title: str,
    indices: Sequence[int],
    baseline: ComparedRun,
    run: ComparedRun,
    opened: Callable[[int], Thumbnail | None],
    note: str,
) -> Part:
    """Return a gallery of images; a table of their names where none of them can be opened."""
    assert baseline.found is not None
    assert baseline.scores is not None
    assert run.scores is not None
    names, ours, theirs = baseline.found.predictions.images, baseline.scores, run.scores
    shown: list[ShownImage] = []
    for index in indices[: 2 * MAX_SHOWN]:
        small = opened(index)
        if small is None:
            continue
        truth = ours.describe_truth(index)
        lines = [f"truth: {truth}"] if truth else []
        lines += [f"{baseline.name}: {ours.describe(index)}", f"{run.name}: {theirs.describe(index)}"]
        shown.append(ShownImage(names[index], [small], lines))
        if len(shown) == MAX_SHOWN:
            break
    if shown or not indices:
        return GalleryPart(title, shown, len(indices), note)
    columns = [Column("image"), Column("truth"), Column(baseline.name), Column(run.name)]
    rows = [
        [names[index], ours.describe_truth(index), ours.describe(index), theirs.describe(index)] for index in indices[:MAX_LISTED]
    ]
    remark = f"The images cannot be opened where the run had them. {min(len(indices), MAX_LISTED)} of {len(indices)} are listed."
    return TablePart(columns, rows, title, f"{note} {remark}".strip())


def _opener(run: ComparedRun) -> Callable[[int], Thumbnail | None]:
    """Return what opens an image of a run's validation set as a thumbnail; None where that is not possible."""
    assert run.found is not None
    known: dict[int, Thumbnail | None] = {}
    try:
        info = read_info(run.found.run_dir.best)
        val_set = tasks.build_evaluation(run.recipe, info).val_set
    except (UserError, OSError):
        return lambda index: None
    if not isinstance(val_set, HasImages) or len(val_set.images) != len(run.found.predictions.images):
        return lambda index: None
    images = val_set.images

    def opened(index: int) -> Thumbnail | None:
        if index not in known:
            try:
                data = thumbnail(images.open(index))
                known[index] = Thumbnail(data, kind=image_kind(data))
            except (UserError, OSError):
                known[index] = None
        return known[index]

    return opened


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
    by_key: dict[str, dict[str, str]] = {}
    for row in recipes:
        by_key.setdefault(row["key"], {})[row["run"]] = row["value"]
    columns = [Column("key"), *(Column(run.name) for run in runs)]
    rows = [[key, *(values[run.name] for run in runs)] for key, values in by_key.items()]
    return ReportSection("recipes", "Recipes", [TablePart(columns, rows)], intro="The keys that differ.")
