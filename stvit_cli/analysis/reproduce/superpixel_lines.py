"""Super tokens of an experiment's runs as superpixels: a line for each segmentation, and the plots beside the tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stvit_cli import __version__
from stvit_cli.analysis.cost.machine import machine
from stvit_cli.analysis.reproduce.experiments import Experiment
from stvit_cli.analysis.superpixels import SuperpixelOptions, SuperpixelResult, evaluate_superpixels
from stvit_cli.analysis.superpixels.measure import METRICS
from stvit_cli.utils.text import shell_command

logger = logging.getLogger(__name__)

COUNTED = {"segments": 1, "components": 1, "boundary_share": 4}
"""What is counted of each segmentation besides the metrics, with the decimals of its mean."""


def superpixel_parts(
    experiment: Experiment, paths: Mapping[str, Path], folder: Path, options: SuperpixelOptions | None = None
) -> dict[str, Any]:
    """Measure the super tokens of runs as superpixels, and write the plots.

    Args:
        experiment: the definition.
        paths: run directories by key, ``LABEL, seed N``.
        folder: of the tables; the plots are written into ``superpixels`` in it.
        options: the set of scenes; by default that of `stvit superpixels`.

    Returns:
        The parts ``superpixels`` and ``superpixel_differences``, with a line for each segmentation and each difference, and
        ``superpixel_notes``, and ``superpixel_runs``, the keys of the runs.
    """
    if not experiment.superpixels or not paths:
        return {}
    logger.info("Measuring the super tokens of %d runs as superpixels", len(paths))
    weights = [f"{key.rpartition(', seed ')[0]}={path}" for key, path in paths.items()]
    result = evaluate_superpixels(weights, options)
    result.write(folder / "superpixels")
    source = {"machine": machine("cpu"), "version": __version__, "command": shell_command("stvit", "reproduce", experiment.name)}
    return {
        "superpixels": _lines(result, source),
        "superpixel_differences": {
            f"{each['setting']}, {each['layer']}: {each['of']} minus {each['minus']}": _rounded(each)
            for each in result.differences()
        },
        "superpixel_notes": result.notes(),
        "superpixel_runs": list(paths),
    }


def _lines(result: SuperpixelResult, source: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    lines = {}
    for row in (each.to_dict() for each in result.rows):
        when = "trained" if row["trained"] else "untrained"
        key = f"{row['setting']}, {when}, {row['layer']}, {row['segmentation']}"
        lines[key] = {
            **{name: row[name] for name in ("setting", "trained", "layer", "stride", "segmentation", "seeds", "scenes")},
            **{name: None if (value := row[name]["mean"]) is None else round(value, digits) for name, digits in COUNTED.items()},
            **_rounded(row),
            **source,
        }
    return lines


def _rounded(row: Mapping[str, Any]) -> dict[str, float]:
    """Return mean and interval over scenes of each metric."""
    return {
        name if end == "mean" else f"{name}_{end}": round(row[name][end], 4)
        for name in METRICS
        for end in ("mean", "low", "high")
    }
