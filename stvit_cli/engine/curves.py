"""The curves of a run as an image."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

TRAIN, VAL, EMA = "#9aa5b1", "#1f6fb4", "#d9730d"


def draw_curves(train: list[dict[str, Any]], evals: list[dict[str, Any]], metric: str, title: str) -> bytes:
    """Return a PNG: losses, the main metric (raw and EMA) and the learning rate over the epochs."""
    figure = Figure(figsize=(11, 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    left, middle, right = figure.subplots(1, 3)
    _line(left, train, "loss", "training", TRAIN)
    for axes, name in ((left, "loss"), (middle, metric)):
        _line(axes, evals, name, "validation", VAL)
        _line(axes, evals, f"ema_{name}", "validation, moving average", EMA)
    _line(right, train, "lr", "learning rate", VAL)
    for axes, label in ((left, "loss"), (middle, metric), (right, "learning rate")):
        axes.set_xlabel("epoch")
        axes.set_title(label, fontsize=10)
        axes.grid(True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(axes.lines) > 1:
            axes.legend(frameon=False, fontsize=8)
    measured = [row for row in evals if row[metric] is not None]
    if measured:
        best = max(measured, key=lambda row: row[metric])
        middle.annotate(
            f"{best[metric]:.2f}",
            (best["epoch"], best[metric]),
            textcoords="offset points",
            xytext=(0, -14),
            ha="center",
            fontsize=9,
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _line(axes: Axes, rows: list[dict[str, Any]], key: str, label: str, colour: str) -> None:
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        marker = "o" if len(points) < 40 and label.startswith("validation") else None
        axes.plot(*zip(*points, strict=True), label=label, color=colour, linewidth=1.5, marker=marker, markersize=3)
