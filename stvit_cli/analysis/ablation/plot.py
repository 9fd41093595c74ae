"""The plot of an ablation: a line for each setting, with the mean, its interval, and a dot for each seed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stvit_cli.analysis.ablation.statistics import Estimate, estimate

BASELINE, CLEAR, OTHER, SEED = "#555555", "#1f6fb4", "#8a9aa8", "#444444"
MAX_REACH = 1.5
"""How far the axis goes beyond the scores, as a multiple of their range: an interval of two seeds would leave them one dot."""


@dataclass(frozen=True)
class PlotLine:
    """A setting in the plot.

    Attributes:
        name: beside the line.
        scores: one for each seed; empty where no run has finished.
        differs: the interval of a difference of it excludes 0.
    """

    name: str
    scores: tuple[float, ...]
    differs: bool = False

    @cached_property
    def score(self) -> Estimate | None:
        """The mean over the seeds with its interval."""
        return estimate(self.scores)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Of the mean; None with fewer than two seeds."""
        score = self.score
        return None if score is None or score.low is None or score.high is None else (score.low, score.high)


def draw(lines: Sequence[PlotLine], title: str, label: str, baseline: int | None = 0) -> bytes:
    """Plot the scores.

    Args:
        lines: the settings, from top to bottom.
        title: above the plot.
        label: of the axis, with the unit.
        baseline: position of the setting that the others are compared with; it has a vertical line.

    Returns:
        An SVG file, the same for the same scores.
    """
    with mpl.rc_context({"svg.hashsalt": "stvit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.2, 1.3 + 0.34 * len(lines)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_title(title, fontsize=11, loc="left")
        low, high = limits([line.scores for line in lines], [line.interval for line in lines])
        cut = False
        for height, line in enumerate(lines):
            score = line.score
            if score is None:
                axes.text(low, height, " no score", va="center", fontsize=8, color=OTHER)
                continue
            colour = BASELINE if height == baseline else CLEAR if line.differs else OTHER
            if (ends := line.interval) is not None:
                axes.plot(ends, [height, height], color=colour, linewidth=2, alpha=0.6, solid_capstyle="butt")
                cut |= ends[0] < low or ends[1] > high
            axes.scatter(line.scores, [height] * len(line.scores), s=9, color=SEED, zorder=3, linewidths=0)
            axes.scatter([score.mean], [height], s=42, facecolor="white", edgecolor=colour, linewidths=1.6, zorder=2)
            if height == baseline:
                axes.axvline(score.mean, color=BASELINE, linewidth=0.8, linestyle=":", zorder=1)
        axes.set_xlim(low, high)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_yticks(range(len(lines)), [line.name for line in lines], fontsize=9)
        note = ": circles are means, lines 95 % intervals, dots seeds" + ("; lines that leave the plot go on" if cut else "")
        figure.supxlabel(label + note, fontsize=8)
        axes.grid(True, axis="x", alpha=0.25)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def limits(scores: Sequence[Sequence[float]], intervals: Sequence[tuple[float, float] | None]) -> tuple[float, float]:
    """Return the ends of an axis of scores: with the intervals, but not far beyond the scores themselves.

    Args:
        scores: of each setting, by seed.
        intervals: of each setting that has one.

    Example:
        >>> low, high = limits([[90.0, 91.0], [92.0]], [(84.0, 97.0), None])
        >>> round(low, 2), round(high, 2)
        (86.6, 95.4)
    """
    values = [value for of_setting in scores for value in of_setting]
    if not values:
        return 0.0, 1.0
    ends = [end for interval in intervals if interval is not None for end in interval]
    reach = MAX_REACH * max(max(values) - min(values), 0.1)
    low, high = max(min([*values, *ends]), min(values) - reach), min(max([*values, *ends]), max(values) + reach)
    margin = 0.05 * max(high - low, 0.1)
    return low - margin, high + margin
