"""Intervals by the bootstrap: against scipy's, their coverage, and the cases in which there is nothing to resample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from stvit_cli.tasks.bootstrap import Interval, intervals, mcnemar, paired_intervals, resampled


class Means:
    """Means of values of the images, (N, M)."""

    def __init__(self, values: NDArray[np.float64], names: tuple[str, ...] = ("mean",)) -> None:
        self.names, self.values = names, values.reshape(len(values), -1).astype(np.float64)

    def __call__(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(counts @ self.values / counts.sum())


def test_percentile_interval_is_that_of_scipy() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).gamma(2.0, size=80)
    found = intervals(Means(values), 80, resamples=4000)["mean"]
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    low, high = theirs.confidence_interval
    spread = high - low
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(low, abs=0.05 * spread)
    assert found.high == pytest.approx(high, abs=0.05 * spread)


def test_paired_interval_is_that_of_the_differences_and_narrower_than_two_apart() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(size=100)
    a, b = hard + generator.normal(scale=0.1, size=100), hard + 0.1 + generator.normal(scale=0.1, size=100)
    paired = paired_intervals(Means(a), Means(b), 100, resamples=300)["mean"]
    of_differences = intervals(Means(b - a), 100, resamples=300)["mean"]
    assert (paired.low, paired.high) == pytest.approx((of_differences.low, of_differences.high))
    assert paired.value == pytest.approx((b - a).mean())
    assert paired.excludes_zero
    alone = intervals(Means(a), 100, resamples=300)["mean"]
    assert paired.high - paired.low < (alone.high - alone.low) / 3


def test_paired_metrics_are_matched_by_name() -> None:
    both = paired_intervals(
        Means(np.array([[1.0, 5.0], [1.0, 5.0]]), ("x", "y")), Means(np.array([[7.0, 9.0], [7.0, 9.0]]), ("y", "z")), 2
    )
    assert both == {"y": Interval(2.0, 2.0, 2.0)}


def test_intervals_hold_the_true_value_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for number in range(120):
        right = generator.random(100) < 0.8
        found = intervals(Means(100.0 * right), 100, resamples=200, seed=number)["mean"]
        held += found.low <= 80 <= found.high
    assert 0.88 <= held / 120 <= 0.99


def test_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = Means(np.random.default_rng(0).normal(size=50))
    assert intervals(values, 50, resamples=100) == intervals(values, 50, resamples=100)
    assert intervals(values, 50, resamples=100) != intervals(values, 50, resamples=100, seed=1)


def test_resamples_are_multinomial_counts() -> None:
    drawn = np.array(list(resampled(20, 500, seed=0)))
    assert (drawn.sum(1) == 20).all()
    assert drawn.mean(0) == pytest.approx(np.ones(20), abs=0.2)
    assert drawn.var() == pytest.approx(1 - 1 / 20, rel=0.05)


def test_one_image_and_no_image_have_no_interval() -> None:
    found = intervals(Means(np.array([3.0])), 1)["mean"]
    assert found.value == 3
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_all_right_is_an_interval_without_width() -> None:
    assert intervals(Means(np.full(10, 100.0)), 10)["mean"] == Interval(100.0, 100.0, 100.0)


def test_metric_that_is_not_defined_has_no_interval_and_some_resamples_without_it_do_no_harm() -> None:
    class Ratio:
        names = ("never", "sometimes")

        def __call__(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
            return np.array([np.nan, 50.0 if counts[0] else np.nan])

    found = intervals(Ratio(), 4, resamples=50)
    assert math.isnan(found["never"].value)
    assert math.isnan(found["never"].low)
    assert found["sometimes"] == Interval(50.0, 50.0, 50.0)


def test_metric_that_resampling_biases_has_no_interval() -> None:
    class Distinct:
        names = ("distinct",)

        def __call__(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
            return np.array([float((counts > 0).sum())])

    assert math.isnan(intervals(Distinct(), 50, resamples=50)["distinct"].low)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (5, 0), (3, 9), (40, 60), (0, 2000), (5000, 5200)])
def test_mcnemar_is_scipys_binomial_test(a: int, b: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert mcnemar(a, b) == mcnemar(b, a)
