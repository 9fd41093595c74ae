"""The plot of an ablation: a line for each setting, with the mean, its interval, and a dot for each seed."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stvit_cli.analysis.ablation.rows import Row

BASELINE, CLEAR, OTHER, SEED = "#555555", "#1f6fb4", "#8a9aa8", "#444444"
MAX_REACH = 1.5
"""How far the axis goes beyond the scores, as a multiple of their range: an interval of two seeds would leave them one dot."""


def draw(rows: Sequence[Row], title: str, label: str) -> bytes:
    """Plot the scores.

    Args:
        rows: the settings, from top to bottom; the first has a vertical line.
        title: above the plot.
        label: of the axis, with the unit.

    Returns:
        An SVG file, the same for the same scores.
    """
    with mpl.rc_context({"svg.hashsalt": "stvit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.2, 1.3 + 0.34 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_title(title, fontsize=11, loc="left")
        low, high = _limits(rows)
        cut = False
        for height, row in enumerate(rows):
            score = row.score
            if score is None:
                axes.text(low, height, " no score", va="center", fontsize=8, color=OTHER)
                continue
            colour = BASELINE if height == 0 else CLEAR if row.difference and row.difference.excludes_zero else OTHER
            if score.low is not None and score.high is not None:
                axes.plot([score.low, score.high], [height, height], color=colour, linewidth=2, alpha=0.6, solid_capstyle="butt")
                cut |= score.low < low or score.high > high
            axes.scatter(list(row.scores.values()), [height] * len(row.scores), s=9, color=SEED, zorder=3, linewidths=0)
            axes.scatter([score.mean], [height], s=42, facecolor="white", edgecolor=colour, linewidths=1.6, zorder=2)
            if height == 0:
                axes.axvline(score.mean, color=BASELINE, linewidth=0.8, linestyle=":", zorder=1)
        axes.set_xlim(low, high)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [row.setting.name for row in rows], fontsize=9)
        note = ": circles are means, lines 95 % intervals, dots seeds" + ("; lines that leave the plot go on" if cut else "")
        axes.set_xlabel(label + note, fontsize=8)
        axes.grid(True, axis="x", alpha=0.25)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the ends of the axis: of the intervals, but not far beyond the scores themselves."""
    scores = [score for row in rows for score in row.scores.values()]
    if not scores:
        return 0.0, 1.0
    estimates = [row.score for row in rows if row.score is not None and row.score.low is not None]
    lows = [each.low for each in estimates if each.low is not None]
    highs = [each.high for each in estimates if each.high is not None]
    reach = MAX_REACH * max(max(scores) - min(scores), 0.1)
    low, high = max(min([*scores, *lows]), min(scores) - reach), min(max([*scores, *highs]), max(scores) + reach)
    margin = 0.05 * max(high - low, 0.1)
    return low - margin, high + margin
