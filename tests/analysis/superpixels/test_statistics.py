"""Means with intervals over scenes and seeds, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stvit_cli.analysis.superpixels.statistics import difference, estimate


def test_intervals_over_scenes_and_over_seeds_equal_scipys() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(0.8, 0.1, (3, 20)) + np.array([[0.0], [0.1], [-0.1]])
    found = estimate(values)
    over_scenes = stats.ttest_1samp(values.mean(0), 0).confidence_interval()
    over_seeds = stats.ttest_1samp(values.mean(1), 0).confidence_interval()
    assert (found.scenes.low, found.scenes.high) == pytest.approx(tuple(over_scenes), abs=1e-6)
    assert (found.seeds.low, found.seeds.high) == pytest.approx(tuple(over_seeds), abs=1e-6)
    assert found.interval == found.seeds  # the wider one
    others = generator.normal(0.7, 0.2, (2, 20))
    welch = stats.ttest_ind(values.mean(1), others.mean(1), equal_var=False).confidence_interval()
    paired = stats.ttest_rel(values.mean(0), others.mean(0)).confidence_interval()
    found = difference(values, others)
    assert (found.seeds.low, found.seeds.high) == pytest.approx(tuple(welch), abs=1e-5)
    assert (found.scenes.low, found.scenes.high) == pytest.approx(tuple(paired), abs=1e-6)


def test_one_seed_or_one_scene_has_no_interval() -> None:
    found = estimate(np.array([[1.0, 2.0]]))
    assert math.isnan(found.seeds.low)
    assert found.interval == found.scenes
    assert not difference(np.ones((1, 1)), np.zeros((1, 1))).interval.excludes_zero
