"""Means over seeds and differences paired by seed, with intervals by Student's t. The arithmetic is scipy's.

A seed decides the initial weights, the order of the images and the augmentation: the intervals say what another seed would
change, not what other images would (that is `tasks.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from stvit_cli.utils.text import first_few

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        n: number of seeds.
        mean: over them.
        std: sample standard deviation; None for one seed.
        low: lower end of the interval; None for one seed, and where all values are equal: they do not say how far another is.
        high: upper end.
        p_value: of the two-sided t-test that the mean is 0; None where there is no interval.

    Example:
        >>> Estimate(n=3, mean=1.0, std=0.1, low=0.75, high=1.25).excludes_zero
        True
    """

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval, and 0 is not in it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them, the ends as ``interval``."""
        interval = None if self.low is None else [self.low, self.high]
        return {"mean": self.mean, "std": self.std, "interval": interval, "p_value": self.p_value, "seeds": self.n}


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of some values with its interval; None without values.

    Args:
        values: one for each seed.

    Example:
        >>> found = estimate([93.0, 93.4, 93.2])
        >>> round(found.mean, 2), round(found.low, 2), round(found.high, 2)
        (93.2, 92.7, 93.7)
    """
    if not values:
        return None
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(1, mean)
    deviation = stdev(values)
    if deviation == 0:
        return Estimate(len(values), mean, 0.0)
    from scipy.stats import ttest_1samp

    test = ttest_1samp(values, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    return Estimate(len(values), mean, deviation, float(interval.low), float(interval.high), float(test.pvalue))


def how_many_are_clear(clear: Sequence[str], total: int, what: str) -> list[str]:
    """Return sentences on differences: how many have an interval without 0, and that each stands for itself.

    Args:
        clear: names of those whose interval excludes 0.
        total: number of those that have an interval.
        what: they are: ``differences from base``.

    Example:
        >>> how_many_are_clear(["b"], 1, "differences from a")
        ['1 of 1 differences from a have an interval without 0: b.']
    """
    which = f": {first_few(clear)}" if clear else ""
    notes = [f"{len(clear)} of {total} {what} have an interval without 0{which}."]
    if total > 1:
        notes.append(f"Each interval stands for itself: that one of {total} misses a difference of 0 is likelier than 1 in 20.")
    return notes


def paired_difference(baseline: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """Return the mean of ``other - baseline`` over the seeds that both have, with its interval: the paired t-test's.

    Args:
        baseline: values by seed.
        other: values by seed.

    Example:
        >>> found = paired_difference({0: 90.0, 1: 91.0, 2: 92.0}, {0: 90.5, 1: 91.4, 2: 92.6})
        >>> round(found.mean, 2), found.excludes_zero
        (0.5, True)
    """
    shared = sorted(baseline.keys() & other.keys())
    return estimate([round(other[seed] - baseline[seed], 9) for seed in shared])  # 0.1 + 0.2 - 0.3 is no spread
