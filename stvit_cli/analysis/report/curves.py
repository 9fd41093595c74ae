"""The curves of a run: losses, metrics, learning rate, throughput and the norm of the gradient, over the epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stvit_cli.analysis.report.run_files import NO_METRICS, Run
from stvit_cli.engine.schedule import lr_at
from stvit_cli.tasks.report_parts import ChartPart, ReportSection, Series, TextPart
from stvit_cli.utils.metric_names import epoch_text, metric_name

NOT_LOSSES = frozenset(
    {"kind", "step", "epoch", "lr", "grad_norm", "images_per_second", "data_wait", "skipped", "peak_memory_bytes"}
)
"""What a row of a training step has beside losses."""

NUM_LR_POINTS = 400

Rows = Sequence[dict[str, Any]]


def curves_section(run: Run) -> ReportSection:
    """Return the curves; with one row of a kind, a point."""
    charts = [chart for chart in _charts(run) if any(value is not None for series in chart.series for value in series.y)]
    if not charts:
        return ReportSection("curves", "Curves", [TextPart(["The run has not logged a step yet."], kind="warning")])
    best = run.best
    mark = "" if best is None else f" ★ marks the best weights: epoch {epoch_text(best.row['epoch'])}{_average(best.prefix)}."
    return ReportSection("curves", "Curves", charts, f"Over the epochs.{mark} Point at a chart, or use the arrow keys on it.")


def _average(prefix: str) -> str:
    return ", the moving average (EMA)" if prefix else ""


def _charts(run: Run) -> Iterator[ChartPart]:
    losses = _names(run.train, NOT_LOSSES)
    validation = [*_evaluated(run, "loss", "validation")]
    yield ChartPart("Loss", "epoch", "loss", [*_series(run.train, "loss", "training"), *validation])
    parts = [name for name in losses if name != "loss"]
    if len(parts) > 1:
        yield ChartPart(
            "Parts of the training loss", "epoch", "loss", [line for name in parts for line in _series(run.train, name, name)]
        )
    for title, names in _groups(run):
        unit = "" if any(name.endswith("loss") for name in names) else " in %"
        series = [line for name in names for line in _evaluated(run, name, metric_name(name).label)]
        yield ChartPart(title, "epoch", f"{title if len(names) == 1 else 'metric'}{unit}", series)
    yield _learning_rate(run)
    yield ChartPart("Training speed", "epoch", "images/s", [*_series(run.train, "images_per_second", "images/s")])
    waits = [*_series(run.train, "data_wait", "waiting for data", factor=100)]
    yield ChartPart("Waiting for data", "epoch", "% of the time", waits, y_range=(0, 100))
    note = "Before clipping. A gap is a step whose gradient was not finite."
    yield ChartPart("Gradient norm", "epoch", "norm", [*_series(run.train, "grad_norm", "gradient norm")], note)


def _names(rows: Rows, without: frozenset[str]) -> list[str]:
    """Return the names of numbers in rows, in their order; those with a slash belong to a breakdown by class."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in without and "/" not in name))


def _groups(run: Run) -> Iterator[tuple[str, list[str]]]:
    """Yield the metrics that share a chart: the main one alone, then the others by the beginning of their names."""
    names = [name for name in _names(run.evals, NO_METRICS) if not name.startswith("ema_") and not name.endswith("loss")]
    main = run.best.metric if run.best is not None else ""
    if main in names:
        yield main, [main]
    groups: dict[str, list[str]] = {}
    for name in names:
        if name != main:
            head, _, rest = name.partition("_")
            title = f"{head} {rest[:2].upper()}" if head in ("box", "mask") else "Further metrics"  # AP and AR apart
            groups.setdefault(title, []).append(name)
    for title, members in groups.items():
        yield (metric_name(members[0]).label if len(members) == 1 else title), members


def _series(rows: Rows, key: str, name: str, *, factor: float = 1.0, best: dict[str, Any] | None = None) -> Iterator[Series]:
    """Yield a series of the rows that have a value, null included; none where no row has one."""
    found = [row for row in rows if key in row]
    values = [row[key] * factor if isinstance(row[key], int | float) else None for row in found]
    if any(value is not None for value in values):
        index = next((i for i, row in enumerate(found) if row is best and values[i] is not None), None)
        yield Series(name, [row["epoch"] for row in found], values, best=index)


def _evaluated(run: Run, key: str, name: str) -> Iterator[Series]:
    """Yield a metric of the evaluations: of the weights, and of their moving average."""
    best = run.best
    for prefix, label in (("", name), ("ema_", f"{name}, EMA")):
        yield from _series(run.evals, prefix + key, label, best=best.row if best is not None and best.prefix == prefix else None)


def _learning_rate(run: Run) -> ChartPart:
    """Return the learning rate as the schedule has it over the entire run, and as it was logged."""
    schedule = run.recipe.schedule
    series = [*_series(run.train, "lr", "logged")]
    if run.steps_per_epoch and run.num_steps:
        last = run.num_steps - 1
        steps = sorted({round(last * i / NUM_LR_POINTS) for i in range(NUM_LR_POINTS + 1)})
        rates = [lr_at(step, schedule, run.recipe.peak_lr, run.steps_per_epoch) for step in steps]
        epochs = [step / run.steps_per_epoch for step in steps]
        series = [*series, Series("schedule", epochs, rates, "dashes")]
    warmup = (
        f"{schedule.warmup_steps} steps"
        if schedule.warmup_steps
        else f"{schedule.warmup_epochs} epoch{'s' * (schedule.warmup_epochs != 1)}"
    )
    note = f"{schedule.kind} schedule, warm-up of {warmup}, peak {run.recipe.peak_lr:.3g}."
    return ChartPart("Learning rate", "epoch", "learning rate", series, note)
