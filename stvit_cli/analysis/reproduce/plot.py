"""The plot of an experiment's results: a line for each setting, with the mean, its interval, and a dot for each seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stvit_cli.analysis.ablation.plot import PlotLine, draw
from stvit_cli.analysis.reproduce.comparisons import baseline_of, clear
from stvit_cli.analysis.reproduce.markdown import heading
from stvit_cli.analysis.reproduce.scores import scores_by_seed


def draw_results(results: Mapping[str, Any]) -> bytes:
    """Plot the main metric of the settings.

    Args:
        results: the content of the JSON file.

    Returns:
        An SVG file, the same for the same results.
    """
    metric, differences = results["metrics"][0], results["differences"]
    scores = scores_by_seed(results["settings"], metric, results["runs"])
    differing = {label for line in differences.values() if clear(line) for label in (line["of"], line["minus"])}
    lines = [PlotLine(label, tuple(own.values()), label in differing) for label, own in scores.items()]
    baseline = baseline_of(differences)
    return draw(lines, results["title"], heading(metric), None if baseline is None else list(scores).index(baseline))
