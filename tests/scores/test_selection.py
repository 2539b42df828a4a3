"""Selection by uncertainty against a loop and scikit-learn."""

import numpy as np
from sklearn.metrics import accuracy_score

from pyrox_ppl import scores

RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(3), size=2000)
LABELS = np.array([RNG.choice(3, p=row) for row in P])
ENTROPY = scores.predictive_entropy(P)


def test_the_most_uncertain_come_first_and_equals_in_order():
    uncertainty = np.array([0.2, 0.9, 0.2, 0.5, 0.9])
    chosen = scores.most_uncertain(uncertainty, 4)
    np.testing.assert_array_equal(chosen, [1, 4, 3, 0])


def test_the_curve_is_the_accuracy_of_the_rows_that_are_kept():
    curve = scores.accuracy_rejection_curve(LABELS, P, ENTROPY)
    for rejected, accuracy, threshold in list(
        zip(curve.rejected, curve.accuracy, curve.threshold, strict=True)
    )[::250]:
        kept = threshold >= ENTROPY
        np.testing.assert_allclose(rejected, 1 - kept.mean(), atol=1e-12)
        expected = accuracy_score(LABELS[kept], P[kept].argmax(-1))
        np.testing.assert_allclose(accuracy, expected)
    np.testing.assert_allclose(curve.rejected[0], 0, atol=1e-12)
    assert len(curve.rejected) == 2000


def test_it_rises_where_uncertainty_tells_wrong_from_right():
    curve = scores.accuracy_rejection_curve(LABELS, P, ENTROPY)
    assert curve.accuracy[1000] > curve.accuracy[0] + 0.08
    blind = scores.accuracy_rejection_curve(LABELS, P, RNG.uniform(size=2000))
    assert abs(blind.accuracy[1000] - blind.accuracy[0]) < 0.04


def test_rows_of_equal_uncertainty_are_rejected_together():
    uncertainty = np.round(ENTROPY, 1)
    curve = scores.accuracy_rejection_curve(LABELS, P, uncertainty)
    assert len(curve.threshold) == len(np.unique(uncertainty))
    order = RNG.permutation(2000)
    other = scores.accuracy_rejection_curve(LABELS[order], P[order], uncertainty[order])
    np.testing.assert_allclose(other.accuracy, curve.accuracy)
