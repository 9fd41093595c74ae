"""Means and their intervals: over the scenes, and over the seeds of the training.

The two say different things. An interval over scenes holds what other scenes of the same kind would change of these weights; one
over seeds what another training would change. With three seeds the second has two degrees of freedom, and is wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stvit_cli.analysis.ablation.statistics import CONFIDENCE
from stvit_cli.analysis.ablation.statistics import estimate as of_seeds

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval of 95 %; both ends are NaN where a single value leaves it unknown."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and scenes.

    Attributes:
        mean: of all values.
        scenes: its interval over scenes, of the means of the seeds.
        by_seed: mean of each seed.
        seeds: its interval over seeds.
    """

    mean: float
    scenes: Interval
    by_seed: tuple[float, ...]
    seeds: Interval

    @property
    def interval(self) -> Interval:
        """The wider of the two intervals."""
        over_seeds = self.seeds.high - self.seeds.low
        return self.seeds if over_seeds > self.scenes.high - self.scenes.low else self.scenes


def estimate(values: Floats) -> Estimate:
    """Return the mean of ``values`` (seeds, scenes) with its intervals: Student's t over scenes, and over seeds.

    Example:
        >>> found = estimate(np.array([[1.0, 2.0, 3.0]]))
        >>> found.mean, round(found.scenes.low, 3), found.by_seed
        (2.0, -0.484, (2.0,))
    """
    by_seed = values.mean(1)
    return Estimate(float(values.mean()), _t_interval(values.mean(0)), tuple(by_seed.tolist()), _t_interval(by_seed))


def difference(values: Floats, others: Floats) -> Estimate:
    """Return the mean difference of two groups of weights, each (seeds, scenes), on the same scenes.

    Scenes are paired; seeds are not, as one training has nothing to do with another: their interval is Welch's.
    """
    by_seed, others_by_seed = values.mean(1), others.mean(1)
    over_scenes = values.mean(0) - others.mean(0)
    mean = float(over_scenes.mean())
    differences = tuple((by_seed - others_by_seed.mean()).tolist())
    return Estimate(mean, _t_interval(over_scenes), differences, _welch_interval(by_seed, others_by_seed))


def _t_interval(values: Floats) -> Interval:
    found = of_seeds(values.tolist())
    if found is None or found.low is None or found.high is None:
        return Interval(math.nan, math.nan)
    return Interval(found.low, found.high)


def _welch_interval(values: Floats, others: Floats) -> Interval:
    if min(len(values), len(others)) < 2:
        return Interval(math.nan, math.nan)
    if not values.var() and not others.var():
        mean = float(values.mean() - others.mean())
        return Interval(mean, mean)
    from scipy.stats import ttest_ind  # half a second

    found = ttest_ind(values, others, equal_var=False).confidence_interval(CONFIDENCE)
    return Interval(float(found.low), float(found.high))
