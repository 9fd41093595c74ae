"""The metrics of an evaluation as small tables. The layout follows the names: ``box_ap`` and ``mask_ap`` share a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stvit_cli.cli.output import echo, print_table
from stvit_cli.utils.metric_names import metric_name, metric_value, metric_with_unit

NUM_CLASSES = 20
"""Rows of the table of classes; of more classes, those with the lowest values."""

_KINDS = ("box", "mask")
_COLUMNS = (
    ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


def print_metrics(results: Mapping[str, Any]) -> None:
    """Print the metrics of an evaluation.

    Args:
        results: ``task``, ``precision``, ``num_images`` and the metrics by name, as ``stvit eval --json`` writes them.
    """
    num_images = results["num_images"]
    metrics = {name: value for name, value in results.items() if name not in ("task", "precision", "num_images")}
    precision = results.get("precision", "fp32")
    echo(f"{results['task']}, {num_images} image{'s' * (num_images != 1)}{f', in {precision}' * (precision != 'fp32')}")
    in_matrix = _print_coco(metrics, num_images)
    single = {name: value for name, value in metrics.items() if name not in in_matrix and "/" not in name}
    if single:
        labels = [metric_name(name).label for name in single]
        width = max(map(len, labels)) + 2
        for label, (name, value) in zip(labels, single.items(), strict=True):
            echo(f"{label:{width}}{metric_with_unit(name, value, num_images) if isinstance(value, float) else value}")
    _print_by_class({name: value for name, value in metrics.items() if "/" in name}, num_images)


def _print_coco(metrics: Mapping[str, Any], num_images: int) -> set[str]:
    """Print a row for boxes and one for masks, average precision first; return the names of the metrics in it."""
    kinds = [kind for kind in _KINDS if f"{kind}_ap" in metrics]
    if not kinds:
        return set()
    for columns in _COLUMNS:
        heads = [metric_name(f"box_{name}").label.removeprefix("box ") for name in columns]
        rows = [
            [kind, *(metric_value(f"{kind}_{name}", metrics[f"{kind}_{name}"], num_images) for name in columns)] for kind in kinds
        ]
        print_table([f"in %{' ' * 2}", *heads], rows, right=range(1, len(heads) + 1))
    if any(metrics[f"{kind}_{name}"] < 0 for kind in kinds for columns in _COLUMNS for name in columns):
        echo("-: no objects of that size")
    return {f"{kind}_{name}" for kind in kinds for columns in _COLUMNS for name in columns}


def _print_by_class(metrics: Mapping[str, float], num_images: int) -> None:
    """Print a metric of each class."""
    by_kind: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        kind, _, of = name.partition("/")
        by_kind.setdefault(kind, {})[of] = value
    for kind, values in by_kind.items():
        shown = list(values.items())
        title = None
        if len(shown) > NUM_CLASSES:
            shown = sorted(shown, key=lambda item: item[1])[:NUM_CLASSES]
            title = f"The {NUM_CLASSES} of {len(values)} classes with the lowest {metric_name(kind).label} (--json FILE has all)"
        echo("")
        head = f"{metric_name(kind).label} {metric_name(kind).unit}".rstrip()
        print_table(["class", head], [[of, metric_value(kind, value, num_images)] for of, value in shown], title, right=[1])
