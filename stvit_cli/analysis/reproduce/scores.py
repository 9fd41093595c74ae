"""The scores of an experiment's runs, by setting and seed: what differences are computed from and plots are drawn of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def scores_by_seed(labels: Iterable[str], metric: str, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Return a metric by label and seed, of the runs that have it.

    Args:
        labels: of all settings.
        metric: its name.
        runs: the lines of runs, by key.
    """
    scores: dict[str, dict[int, float]] = {label: {} for label in labels}
    for line in runs.values():
        if metric in line and line["setting"] in scores:
            scores[line["setting"]][line["seed"]] = line[metric]
    return scores
