"""Scores of class probabilities against scikit-learn and scoringrules."""

import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules as sr
import sklearn.metrics

from pyrox_ppl import scores

RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(4), size=300)
LABELS = RNG.integers(0, 4, size=300)
EVENT = P[:, 0]
HAPPENED = LABELS % 2
BY_CLASS = [
    scores.class_log_score,
    scores.brier_score,
    scores.accuracy,
    scores.ranked_probability_score,
]


def test_the_log_score_is_the_log_loss_of_scikit_learn():
    ours = scores.class_log_score(LABELS, P)
    np.testing.assert_allclose(-ours.mean(), sklearn.metrics.log_loss(LABELS, P))
    ours = scores.class_log_score(HAPPENED, EVENT)
    np.testing.assert_allclose(-ours.mean(), sklearn.metrics.log_loss(HAPPENED, EVENT))


def test_a_label_of_probability_zero_scores_minus_infinity():
    p = np.array([[1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_array_equal(scores.class_log_score([0, 1], p), [0, -np.inf])


def test_the_brier_score_of_classes_is_that_of_scikit_learn():
    expected = sklearn.metrics.brier_score_loss(
        LABELS, P, labels=range(4), scale_by_half=False
    )
    np.testing.assert_allclose(scores.brier_score(LABELS, P).mean(), expected)


def test_the_brier_score_of_an_event_is_that_of_scoringrules():
    expected = sr.brier_score(HAPPENED, EVENT)
    np.testing.assert_allclose(scores.brier_score(HAPPENED, EVENT), expected)
    two = np.stack([1 - EVENT, EVENT], axis=-1)
    np.testing.assert_allclose(scores.brier_score(HAPPENED, two), 2 * expected)


def test_the_ranked_probability_score_is_that_of_scoringrules():
    expected = sr.rps_score(LABELS + 1, P)
    np.testing.assert_allclose(scores.ranked_probability_score(LABELS, P), expected)


def test_accuracy_is_that_of_scikit_learn():
    expected = sklearn.metrics.accuracy_score(LABELS, P.argmax(-1))
    np.testing.assert_allclose(scores.accuracy(LABELS, P).mean(), expected)
    expected = sklearn.metrics.accuracy_score(HAPPENED, EVENT > 0.5)
    np.testing.assert_allclose(scores.accuracy(HAPPENED, EVENT).mean(), expected)


def test_equally_probable_classes_share_the_accuracy():
    p = np.array([[0.4, 0.4, 0.2]] * 3)
    np.testing.assert_array_equal(scores.accuracy([0, 1, 2], p), [0.5, 0.5, 0.0])


@pytest.mark.parametrize("score", BY_CLASS)
def test_every_row_has_its_score_whatever_the_axes(score):
    rows = score(LABELS, P)
    grid = score(LABELS.reshape(3, 100), P.reshape(3, 100, 4))
    np.testing.assert_array_equal(grid, rows.reshape(3, 100))
    np.testing.assert_array_equal(score(LABELS[7], P[7]), rows[7])


@pytest.mark.parametrize("score", BY_CLASS)
def test_renumbering_the_classes_changes_nothing(score):
    numbers = np.array([2, 0, 3, 1])
    renumbered = score(numbers[LABELS], P[:, np.argsort(numbers)])
    if score is scores.ranked_probability_score:  # whose classes have an order
        assert not np.allclose(renumbered, score(LABELS, P))
    else:
        np.testing.assert_allclose(renumbered, score(LABELS, P), rtol=1e-12)


@pytest.mark.parametrize("labels", [LABELS % 2 == 1, (LABELS % 2).astype(np.float32)])
def test_labels_may_be_booleans_or_whole_floats(labels):
    expected = scores.brier_score(LABELS % 2, EVENT)
    np.testing.assert_array_equal(scores.brier_score(labels, EVENT), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_probabilities_of_jax_may_be_rounded(dtype):
    p = jnp.asarray(P).astype(dtype)
    ours = scores.brier_score(jnp.asarray(LABELS), p)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, scores.brier_score(LABELS, P), atol=0.02)


def test_rounding_beyond_1_and_below_0_is_clipped():
    p = np.array([1 + 1e-7, -1e-7])
    np.testing.assert_array_equal(scores.class_log_score([0, 1], p), [-np.inf] * 2)
    two = np.stack([1 - p, p], axis=-1)
    np.testing.assert_array_equal(scores.brier_score([1, 0], two), [0, 0])
    np.testing.assert_array_equal(scores.entropy_split(two[None]).total, [0, 0])


def test_one_row_of_independent_events_is_not_taken_for_one_hot():
    labels = np.array([[1, 0], [1, 1], [0, 0]])
    p = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.3]])
    expected = sr.brier_score(labels, p)
    np.testing.assert_allclose(scores.brier_score(labels, p), expected)
