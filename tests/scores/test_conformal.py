"""Conformal intervals and sets against mapie, and their guarantee by simulation."""

import jax
import numpy as np
import pytest
import scipy.stats
from mapie.classification import SplitConformalClassifier
from mapie.regression import ConformalizedQuantileRegressor, SplitConformalRegressor
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from pyrox_ppl import scores

RNG = np.random.default_rng(0)
SETS = 2000  # simulated calibration sets
KEYS = jax.random.split(jax.random.key(0), 2)


class Fitted(BaseEstimator):
    """An estimator that needs no fit, by scikit-learn's way to say so and mapie's."""

    fitted_ = True

    def __sklearn_is_fitted__(self):
        return True


class Column(RegressorMixin, Fitted):
    """Predicts a column of its inputs."""

    def __init__(self, number=0):
        self.number = number

    def fit(self, x, y):
        return self

    def predict(self, x):
        return x[:, self.number]


class Rows(ClassifierMixin, Fitted):
    """A classifier whose probabilities are its inputs."""

    classes_ = np.arange(4)

    def fit(self, x, y):
        return self

    def predict(self, x):
        return x.argmax(-1)

    def predict_proba(self, x):
        return x


def interval_of_mapie(mapie, x, y, new, **options):
    interval = mapie.conformalize(x, y).predict_interval(new, **options)[1]
    return interval[:, 0, 0], interval[:, 1, 0]


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("rows", [99, 150])
def test_the_absolute_residual_is_that_of_mapie(level, rows):
    x, y, new = RNG.normal(size=(rows, 1)), RNG.normal(size=rows), np.zeros((3, 1))
    mapie = SplitConformalRegressor(Column(), level, prefit=True)
    expected = interval_of_mapie(mapie, x, y, new)
    fitted = scores.ConformalInterval.fit(y, x[:, 0], x[:, 0], level=level)
    np.testing.assert_allclose(fitted.apply(new[:, 0], new[:, 0]), expected)


@pytest.mark.parametrize("width", [0.2, 9.0])
def test_quantiles_are_conformalised_as_those_of_mapie(width):
    lower = RNG.normal(size=150)
    x = np.stack([lower, lower + width, lower + width / 2], axis=1)
    y = lower + width / 2 + RNG.normal(size=150)
    columns = [Column(0), Column(1), Column(2)]
    mapie = ConformalizedQuantileRegressor(columns, 0.9, prefit=True)
    expected = interval_of_mapie(mapie, x, y, x[:5], symmetric_correction=True)
    fitted = scores.ConformalInterval.fit(y, x[:, 0], x[:, 1], level=0.9)
    np.testing.assert_allclose(fitted.apply(x[:5, 0], x[:5, 1]), expected)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_sets_are_those_of_mapie(level, monkeypatch):
    p, new = RNG.dirichlet(np.ones(4), size=150), RNG.dirichlet(np.ones(4), size=80)
    labels = RNG.integers(0, 4, size=150)
    mapie = SplitConformalClassifier(
        Rows(), level, conformity_score="aps", prefit=True, random_state=0
    )
    expected = mapie.conformalize(p, labels).predict_set(
        new, {"include_last_label": "randomized"}
    )[1]
    monkeypatch.setattr(
        "pyrox_ppl.scores._conformal.uniform",
        lambda rng_key, shape, purpose: (
            1 - np.random.RandomState(0).uniform(size=shape)
        ),
    )
    sets = scores.ConformalSets.fit(labels, p, level=level, rng_key=KEYS[0])
    ours = sets.apply(new, rng_key=KEYS[1])
    np.testing.assert_array_equal(ours, expected[..., 0])


def within_the_guarantee(covered, rows, level=0.9):
    """Whether the mean over calibration sets is, but for its Monte-Carlo error."""
    error = 4 * covered.std() / np.sqrt(len(covered))
    return level - error <= covered.mean() <= level + 1 / (rows + 1) + error


# A model that is right, one that is biased and too sure, one that knows nothing.
@pytest.mark.parametrize(
    ("loc", "scale", "rows"), [(0.0, 1.0, 200), (2.0, 0.1, 19), (0.0, 30.0, 200)]
)
@pytest.mark.parametrize("kind", ["residual", "quantiles"])
def test_intervals_cover_new_rows_at_the_level(loc, scale, rows, kind):
    spread = 0.0 if kind == "residual" else 1.2 * scale
    lower, upper = np.full(rows, loc - spread), np.full(rows, loc + spread)
    outcomes = np.random.default_rng(rows).normal(size=(SETS, rows))
    covered = np.empty(SETS)
    for i, y in enumerate(outcomes):
        fitted = scores.ConformalInterval.fit(y, lower, upper, level=0.9)
        low, high = fitted.apply(lower[:1], upper[:1])
        covered[i] = np.diff(scipy.special.ndtr([low[0], high[0]]))[0]
    assert within_the_guarantee(covered, rows)


# The model's probabilities are those of the labels to this power.
@pytest.mark.parametrize(("power", "rows"), [(1.0, 100), (4.0, 19), (-1.0, 100)])
def test_sets_cover_new_labels_at_the_level(power, rows, monkeypatch):
    rng = np.random.default_rng(rows)
    # One generator for all sets: their errors are independent, and it is fast.
    monkeypatch.setattr(
        "pyrox_ppl.scores._conformal.uniform",
        lambda rng_key, shape, purpose: rng.uniform(size=shape),
    )
    truth = rng.dirichlet(np.ones(4), size=(SETS, rows + 50))
    labels = (np.log(truth) + rng.gumbel(size=truth.shape)).argmax(-1)
    p = truth**power / (truth**power).sum(-1, keepdims=True)
    covered = np.empty(SETS)
    for i in range(SETS):
        sets = scores.ConformalSets.fit(
            labels[i, :rows], p[i, :rows], level=0.9, rng_key=KEYS[0]
        )
        held = sets.apply(p[i, rows:], rng_key=KEYS[1])
        covered[i] = held[np.arange(50), labels[i, rows:]].mean()
    assert within_the_guarantee(covered, rows)


def test_a_margin_may_be_negative_and_bounds_do_not_cross():
    wide, y = np.full(99, 10.0), RNG.normal(size=99)
    fitted = scores.ConformalInterval.fit(y, -wide, wide, level=0.9)
    assert fitted.margin < -7
    low, high = fitted.apply(np.array([-10.0, 1.0]), np.array([10.0, 2.0]))
    np.testing.assert_allclose([low[0], high[0]], [-10 - fitted.margin, high[0]])
    np.testing.assert_array_equal([low[1], high[1]], [1.5, 1.5])


@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.7, 0.9])
def test_classes_of_equal_probability_are_in_a_set_together(threshold, monkeypatch):
    p, v = RNG.multinomial(4, np.ones(4) / 4, size=300) / 4, RNG.uniform(size=300)
    monkeypatch.setattr(
        "pyrox_ppl.scores._conformal.uniform", lambda rng_key, shape, purpose: v
    )
    above = (p[:, None] * (p[:, None] > p[..., None])).sum(-1)
    equal = (p[:, None] * (p[:, None] == p[..., None])).sum(-1)
    expected = above + v[:, None] * equal <= threshold
    sets = scores.ConformalSets(threshold, 0.9, 99).apply(p, rng_key=KEYS[0])
    np.testing.assert_array_equal(sets, expected)


def test_renumbering_the_classes_changes_nothing():
    counts = RNG.multinomial(4, np.ones(4) / 4, size=300)  # many ties, and zeros
    p, labels = counts / 4, RNG.integers(0, 4, size=300)
    numbers = np.array([2, 0, 3, 1])
    one = scores.ConformalSets.fit(labels, p, rng_key=KEYS[0])
    other = scores.ConformalSets.fit(
        numbers[labels], p[:, np.argsort(numbers)], rng_key=KEYS[0]
    )
    np.testing.assert_allclose(other.threshold, one.threshold)
    held = one.apply(p, rng_key=KEYS[1])
    renumbered = one.apply(p[:, np.argsort(numbers)], rng_key=KEYS[1])
    np.testing.assert_array_equal(renumbered, held[:, np.argsort(numbers)])


def test_one_key_for_both_gives_independent_numbers():
    p, labels = np.full((1000, 2), [0.6, 0.4]), np.zeros(1000)
    sets = scores.ConformalSets.fit(labels, p, level=0.5, rng_key=KEYS[0])
    held = sets.apply(p, rng_key=KEYS[0])[:, 0]
    # With the numbers of the fit, exactly the 501 smallest scores would be within.
    assert held.sum() != 501
    assert abs(held.mean() - 0.5) < 0.1
    np.testing.assert_array_equal(held, sets.apply(p, rng_key=KEYS[0])[:, 0])
    assert (held != sets.apply(p, rng_key=KEYS[1])[:, 0]).any()
