"""Runs beside each other: recipes, curves, metrics with paired intervals, and the images on which they differ."""

from stvit_cli.analysis.comparison.compare import compare_runs
from stvit_cli.analysis.comparison.result import Comparison

__all__ = ["Comparison", "compare_runs"]
