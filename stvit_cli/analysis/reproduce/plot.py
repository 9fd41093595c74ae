"""The plot of an experiment's results: a line for each setting, with the mean, its interval, and a dot for each seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stvit_cli.analysis.ablation.plot import PlotLine, draw
from stvit_cli.analysis.ablation.statistics import paired_difference
from stvit_cli.analysis.reproduce.markdown import heading
from stvit_cli.analysis.reproduce.scores import scores_by_seed


def draw_results(results: Mapping[str, Any]) -> bytes:
    """Plot the main metric of the settings.

    Args:
        results: the content of the JSON file.

    Returns:
        An SVG file, the same for the same results.
    """
    metric = results["metrics"][0]
    scores = scores_by_seed(results["settings"], metric, results["runs"])
    first = next(iter(scores.values()))
    lines = []
    for label, own in scores.items():
        difference = paired_difference(first, own)
        lines.append(PlotLine(label, tuple(own.values()), difference is not None and difference.excludes_zero))
    return draw(lines, results["title"], heading(metric))
