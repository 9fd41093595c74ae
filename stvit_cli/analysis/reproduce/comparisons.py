"""What the differences of an experiment say: which are clear, and how sure that is. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stvit_cli.analysis.ablation.statistics import Estimate, how_many_are_clear

SIGNIFICANT = 0.05


def clear(line: Mapping[str, Any]) -> bool:
    """Whether a difference has an interval, and 0 is not in it."""
    return Estimate(line["num_seeds"], line["mean"], low=line["low"], high=line["high"]).excludes_zero


def baseline_of(differences: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the label of the setting that is in every difference; None where there is none.

    Example:
        >>> baseline_of({"b minus a": {"of": "b", "minus": "a"}, "c minus a": {"of": "c", "minus": "a"}})
        'a'
    """
    pairs = [(line["minus"], line["of"]) for line in differences.values()]
    return next((label for label in pairs[0] if all(label in pair for pair in pairs)), None) if pairs else None


def sentences(differences: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is below the table of differences.

    Args:
        differences: their lines, by key; those without a value are left out.
    """
    known = {key: line for key, line in differences.items() if line["low"] is not None}
    notes = how_many_are_clear([key for key, line in known.items() if clear(line)], len(known), "differences") if known else []
    mixed = [key for key, line in differences.items() if line["seeds_of_two_machines"]]
    if mixed:
        which = "each of them" if len(mixed) == len(differences) else "; ".join(mixed)
        notes.append(
            "In at least one seed the two runs were on different processors, whose arithmetic differs in the last digits: "
            f"{which}."
        )
    return notes


def significant_pairs(pairs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return in how many seeds the test of two settings is significant, in one sentence.

    Args:
        pairs: the lines of the tests, by key: ``LABEL and LABEL, seed N``.
    """
    values: dict[str, list[float]] = {}
    for key, pair in pairs.items():
        values.setdefault(key.rpartition(", seed ")[0], []).append(pair["p_value"])
    counts = [f"{label} in {sum(p < SIGNIFICANT for p in own)} of {len(own)}" for label, own in values.items()]
    return f"Seeds with p below {SIGNIFICANT}: {'; '.join(counts)}."
