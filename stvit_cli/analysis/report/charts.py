"""Charts as the page's script draws them: series of at most some hundred points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stvit_cli.tasks.report_parts import ChartPart, Series

MAX_POINTS = 600
"""Points of a line; a longer one keeps the lowest and the highest of each stretch."""


def chart_data(part: ChartPart) -> dict[str, Any]:
    """Return a chart for the page's script."""
    return {
        "title": part.title,
        "x": part.x_label,
        "y": part.y_label,
        "xRange": part.x_range,
        "yRange": part.y_range,
        "series": [_series(series) for series in part.series],
    }


def summary(part: ChartPart) -> str:
    """Return what a chart shows as a sentence, for readers who do not see it.

    >>> summary(ChartPart("Loss", "epoch", "loss", [Series("training", [1, 2, 3], [3.0, 1.5, 2.0])]))
    'Loss by epoch. training: from 3 to 2, lowest 1.5, highest 3.'
    """
    texts = []
    for series in part.series[:6]:
        known = [value for value in series.y if value is not None and math.isfinite(value)]
        if known:
            texts.append(
                f"{series.name}: from {known[0]:.4g} to {known[-1]:.4g}, lowest {min(known):.4g}, highest {max(known):.4g}."
                if len(known) > 1
                else f"{series.name}: {known[0]:.4g}."
            )
    more = [f"And {len(part.series) - 6} more series."] if len(part.series) > 6 else []
    return " ".join([f"{part.title} by {part.x_label}.", *texts, *more])


def _series(series: Series) -> dict[str, Any]:
    kept = kept_points(series)
    best = None if series.best is None else kept.index(series.best)
    x, y = [_short(series.x[i]) for i in kept], [_short(series.y[i]) for i in kept]
    return {"name": series.name, "x": x, "y": y, "kind": series.kind, "best": best}


def kept_points(series: Series) -> list[int]:
    """Return the indices of the points that are drawn: all of a short series, of a long one those that make its outline.

    The first, the last and the best are always among them; so is a gap.
    """
    number = len(series.x)
    if number <= MAX_POINTS:
        return list(range(number))
    stretches = MAX_POINTS // 3
    kept = {0, number - 1} | ({series.best} if series.best is not None else set())
    for stretch in range(stretches):
        indices = range(stretch * number // stretches, (stretch + 1) * number // stretches)
        known = [(value, i) for i in indices if (value := _short(series.y[i])) is not None]
        gaps = [i for i in indices if _short(series.y[i]) is None]
        kept |= {min(known)[1], max(known)[1]} if known else set()
        kept |= set(gaps[:1])
    return sorted(kept)


def _short(value: float | None) -> float | int | None:
    """Return a number with six significant digits; None for one that is not finite."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() else rounded


def grouped(parts: Sequence[Any]) -> list[list[Any]]:
    """Return parts in groups: charts that follow each other stand side by side.

    >>> grouped(["text", "more"])
    [['text'], ['more']]
    """
    groups: list[list[Any]] = []
    for part in parts:
        if isinstance(part, ChartPart) and groups and isinstance(groups[-1][-1], ChartPart):
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups
