"""Intervals of draws against numpy's quantiles, scoringrules and mapie."""

import numpy as np
import scipy.stats
import scoringrules as sr
from mapie.metrics.regression import (
    regression_coverage_score,
    regression_mean_width_score,
    regression_mwi_score,
)

from pyrox_ppl import scores

RNG = np.random.default_rng(0)
Y = RNG.normal(size=500)
LOWER = RNG.normal(-1.0, 0.3, size=500)
UPPER = LOWER + RNG.uniform(0.5, 3, size=500)
BOUNDS = np.stack([LOWER, UPPER], axis=1)


def test_the_interval_score_is_scoringrules():
    expected = sr.interval_score(Y, LOWER, UPPER, 0.2)
    ours = scores.interval_score(Y, LOWER, UPPER, level=0.8)
    np.testing.assert_allclose(ours, expected)


def test_the_mean_interval_score_is_mapies():
    expected = regression_mwi_score(Y, BOUNDS[..., None], 0.8)
    ours = scores.interval_score(Y, LOWER, UPPER, level=0.8).mean()
    np.testing.assert_allclose(ours, expected)


def test_coverage_and_sharpness_are_mapies():
    covered = regression_coverage_score(Y, BOUNDS[..., None])
    np.testing.assert_allclose(scores.coverage(Y, LOWER, UPPER).mean(), covered)
    width = regression_mean_width_score(BOUNDS[..., None])
    np.testing.assert_allclose(scores.sharpness(LOWER, UPPER).mean(), width)


def test_a_bound_is_covered():
    y = np.array([0.0, 1.0, 1.1])
    covered = scores.coverage(y, np.zeros(3), np.ones(3))
    np.testing.assert_array_equal(covered, [True, True, False])


def test_the_central_interval_of_gaussian_draws_is_the_closed_form():
    draws = RNG.normal(2.0, 3.0, size=(200_000, 2))
    lower, upper = scores.central_interval(draws, level=0.8)
    expected = scipy.stats.norm.interval(0.8, 2.0, 3.0)
    np.testing.assert_allclose(lower, expected[0], atol=0.05)
    np.testing.assert_allclose(upper, expected[1], atol=0.05)


def test_the_central_interval_covers_draws_of_the_same_law_at_its_level():
    draws = RNG.normal(size=(2000, 4000))
    lower, upper = scores.central_interval(draws, level=0.7)
    covered = scores.coverage(RNG.normal(size=4000), lower, upper).mean()
    assert abs(covered - 0.7) < 4 * np.sqrt(0.21 / 4000)


def test_a_single_outcome_is_a_row():
    y, draws = np.array(0.3), np.arange(11.0)
    lower, upper = scores.central_interval(draws, level=0.8)
    assert lower.shape == upper.shape == ()
    np.testing.assert_allclose([lower, upper], [1.0, 9.0])
    assert not scores.coverage(y, lower, upper)
    np.testing.assert_allclose(scores.sharpness(lower, upper), 8.0)
    ours = scores.interval_score(y, lower, upper, level=0.8)
    np.testing.assert_allclose(ours, sr.interval_score(0.3, 1.0, 9.0, 0.2))
