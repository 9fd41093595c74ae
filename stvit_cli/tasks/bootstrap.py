"""Confidence intervals of metrics by the bootstrap over images, and the exact test of two classifiers on the same images.

N images, M metrics, R resamples. A resample draws N of the N images with replacement; a metric is computed again from how often
each image was drawn. The percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13) then
holds the middle 95 % of these values. It says what other images of the same kind would change, not what another seed would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.predictions import Statistics

RESAMPLES = 1000
"""Of most metrics; see `num_resamples`."""
FEWEST = 100
ELEMENTS = 10**9
"""Values that all resamples together may read: at 2 to 10 ns each, seconds."""
CONFIDENCE = 0.95


@runtime_checkable
class HasElements(Protocol):
    """Statistics that say how much one call takes.

    Attributes:
        elements: the number of values that it reads, where that is not the number of images.
    """

    elements: int


@dataclass(frozen=True)
class Interval:
    """A metric and its confidence interval.

    Attributes:
        value: of all images; NaN: not defined.
        low: lower end; NaN: there is no interval.
        high: upper end.
        bias: mean of the resamples less the value; NaN: there are none.

    Example:
        >>> Interval(value=2.0, low=1.0, high=3.0).excludes_zero
        True
    """

    value: float
    low: float
    high: float
    bias: float = field(default=math.nan, compare=False)

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside: of a difference, that it is not explained by the choice of the images."""
        return self.low > 0 or self.high < 0


def intervals(
    statistics: Statistics, num_images: int, *, resamples: int | None = None, seed: int = 0, confidence: float = CONFIDENCE
) -> dict[str, Interval]:
    """Return the metrics with their intervals. The same arguments give the same intervals.

    Args:
        statistics: metrics as a function of how often each image counts.
        num_images: N.
        resamples: R; fewer are faster, and the ends of the intervals less exact. None: `num_resamples`.
        seed: of the resamples.
        confidence: part of the resamples that lies within, 0 to 1.

    Returns:
        By the name of the metric. Without an interval (NaN) is a metric of a single image, and one that lies outside of its own:
        resampling then biases it, and an interval would mislead.

    Example:
        >>> class Accuracy:
        ...     names = ("top1",)
        ...     right = np.array([1, 1, 1, 0] * 25)
        ...     def __call__(self, counts):
        ...         return np.array([100 * (counts @ self.right) / counts.sum()])
        >>> found = intervals(Accuracy(), 100)["top1"]
        >>> found.value, 62 <= found.low <= 70, 80 <= found.high <= 86
        (75.0, True, True)
    """
    names, values = list(statistics.names), statistics(np.ones(num_images, dtype=np.int64))
    if resamples is None:
        resamples = num_resamples(statistics, num_images)
    drawn = np.array([statistics(counts) for counts in resampled(num_images, resamples if num_images > 1 else 0, seed)])
    return _by_name(names, values, drawn, confidence)


def paired_intervals(
    a: Statistics,
    b: Statistics,
    num_images: int,
    *,
    resamples: int | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """Return the differences b - a of the metrics that both have, with intervals.

    Both are computed of the same resamples: that an image is hard for both then widens no interval.

    Args:
        a: metrics of the first model.
        b: metrics of the second model for the same images, in the same order.
        num_images: N.
        resamples: R; None: `num_resamples`.
        seed: of the resamples.
        confidence: part of the resamples that lies within, 0 to 1.

    Returns:
        By the name of the metric, in the order of ``a``; NaN as `intervals`.

    Example:
        >>> class Accuracy:
        ...     names = ("top1",)
        ...     def __init__(self, right):
        ...         self.right = np.array(right)
        ...     def __call__(self, counts):
        ...         return np.array([100 * (counts @ self.right) / counts.sum()])
        >>> paired_intervals(Accuracy([1, 0, 0, 1]), Accuracy([1, 0, 1, 1]), 4)["top1"].value
        25.0
    """
    shared = [name for name in a.names if name in set(b.names)]
    of_a, of_b = ([list(which.names).index(name) for name in shared] for which in (a, b))

    def difference(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return b(counts)[of_b] - a(counts)[of_a]

    if resamples is None:
        resamples = num_resamples(a, num_images)
    values = difference(np.ones(num_images, dtype=np.int64))
    drawn = np.array([difference(counts) for counts in resampled(num_images, resamples if num_images > 1 else 0, seed)])
    return _by_name(shared, values, drawn, confidence)


def num_resamples(statistics: Statistics, num_images: int) -> int:
    """Return how many resamples take seconds: `RESAMPLES`, of metrics that take longer fewer, at least `FEWEST`.

    It depends on the size of the data alone, and never on the speed of the machine.

    Example:
        >>> class Accuracy:
        ...     names = ("top1",)
        >>> num_resamples(Accuracy(), 50_000), num_resamples(Accuracy(), 5_000_000)
        (1000, 200)
    """
    elements = statistics.elements if isinstance(statistics, HasElements) else num_images
    return max(FEWEST, min(RESAMPLES, ELEMENTS // max(elements, 1)))


def resampled(num_images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each image is drawn, (N,), for each resample; a multinomial count whose sum is N.

    Example:
        >>> [int(counts.sum()) for counts in resampled(5, 2, seed=0)]
        [5, 5]
    """
    # MT19937's raw stream is frozen; the streams of Generator's methods may change with a release of numpy.
    generator = np.random.RandomState(seed)
    for _ in range(resamples):
        yield np.bincount(generator.randint(0, num_images, num_images, dtype=np.int32), minlength=num_images)


def mcnemar(only_a_right: int, only_b_right: int) -> float:
    """Return the p-value of McNemar's exact test: whether two classifiers are right for equally many of the same images.

    Under the hypothesis that they are, each image that only one of them gets right is a toss of a fair coin. Two-sided.

    Args:
        only_a_right: number of images that the first classifier alone gets right.
        only_b_right: number of those that the second alone gets right.

    Example:
        >>> mcnemar(0, 5), mcnemar(3, 3)
        (0.0625, 1.0)
    """
    total, fewer = only_a_right + only_b_right, min(only_a_right, only_b_right)
    if only_a_right == only_b_right:
        return 1.0
    logs = [_log_binomial(total, count) for count in range(fewer + 1)]
    tail = math.exp(logs[-1] - total * math.log(2)) * math.fsum(math.exp(value - logs[-1]) for value in logs)
    return min(1.0, 2 * tail)


def _log_binomial(total: int, count: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)


def _by_name(
    names: Sequence[str], values: NDArray[np.float64], drawn: NDArray[np.float64], confidence: float
) -> dict[str, Interval]:
    found = {}
    for column, (name, value) in enumerate(zip(names, values.tolist(), strict=True)):
        low = high = bias = math.nan
        usable = drawn[:, column][np.isfinite(drawn[:, column])] if len(drawn) else drawn
        if len(usable) and math.isfinite(value):
            low, high = np.quantile(usable, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
            bias = float(usable.mean()) - value
            if not low <= value <= high:
                low = high = math.nan
        found[name] = Interval(value, low, high, bias)
    return found
