"""Reliability and calibration error against scikit-learn, mapie and scipy."""

import numpy as np
import pytest
import scipy.stats
from mapie.metrics.calibration import top_label_ece
from sklearn.calibration import calibration_curve

from pyrox_ppl import scores

RNG = np.random.default_rng(0)
EVENT = RNG.uniform(size=1000)
HAPPENED = (RNG.uniform(size=1000) < EVENT**2).astype(int)
P = RNG.dirichlet(np.ones(4), size=1000)
LABELS = RNG.integers(0, 4, size=1000)
STRATEGIES = [("equal_width", "uniform"), ("equal_mass", "quantile")]


@pytest.mark.parametrize(("binning", "strategy"), STRATEGIES)
def test_the_curve_of_an_event_is_that_of_scikit_learn(binning, strategy):
    frequency, confidence = calibration_curve(
        HAPPENED, EVENT, n_bins=8, strategy=strategy
    )
    curve = scores.reliability_curve(HAPPENED, EVENT, bins=8, binning=binning)
    np.testing.assert_allclose(curve.frequency, frequency)
    np.testing.assert_allclose(curve.confidence, confidence)
    assert curve.count.sum() == 1000
    assert len(curve.edges) == 9
    assert curve.binning == binning


@pytest.mark.parametrize(("binning", "strategy"), STRATEGIES)
def test_the_error_of_classes_is_the_gap_in_the_curve_of_scikit_learn(
    binning, strategy
):
    confidence, right = P.max(-1), P.argmax(-1) == LABELS
    frequency, mean = calibration_curve(right, confidence, n_bins=10, strategy=strategy)
    error = scores.expected_calibration_error(LABELS, P, bins=10, binning=binning)
    count = error.count[error.count > 0]
    np.testing.assert_allclose(error.value, count @ np.abs(frequency - mean) / 1000)
    assert error.binning == binning
    assert len(error.edges) == len(error.count) + 1


def test_the_error_of_one_bin_is_that_of_mapie():
    # mapie averages classes' errors, so that one class is predicted here, and its
    # number of bins is a number of edges.
    p = np.stack([EVENT, 1 - EVENT], axis=-1)[EVENT > 0.5]
    labels = 1 - HAPPENED[EVENT > 0.5]
    expected = top_label_ece(labels, p, num_bins=11, split_strategy="uniform")
    ours = scores.expected_calibration_error(labels, p, bins=10)
    np.testing.assert_allclose(ours.value, expected)


def test_the_band_is_clopper_and_pearsons():
    labels = np.r_[HAPPENED, np.zeros(3), np.ones(2)]
    event = np.r_[EVENT * 0.6 + 0.2, np.full(3, 0.05), np.full(2, 0.95)]
    curve = scores.reliability_curve(labels, event, bins=10, level=0.8)
    for b in range(10):
        if curve.count[b]:
            hits = round(curve.frequency[b] * curve.count[b])
            test = scipy.stats.binomtest(hits, int(curve.count[b]))
            band = test.proportion_ci(0.8, "exact")
            np.testing.assert_allclose([curve.lower[b], curve.upper[b]], band)
    assert curve.lower[0] == 0
    assert curve.upper[-1] == 1


def test_an_empty_bin_has_no_frequency():
    curve = scores.reliability_curve([0, 1], [0.1, 0.9], bins=3)
    np.testing.assert_array_equal(curve.count, [1, 0, 1])
    for values in (curve.frequency, curve.confidence, curve.lower, curve.upper):
        np.testing.assert_array_equal(np.isnan(values), [False, True, False])
    error = scores.expected_calibration_error([0, 1], [0.1, 0.9], bins=3)
    np.testing.assert_allclose(error.value, 0.1)
    assert str(error) == "ECE 0.1000 (3 bins of equal width)"


def test_equal_confidences_are_one_bin_of_equal_mass():
    labels, event = np.array([0, 1, 1, 1]), np.full(4, 0.6)
    curve = scores.reliability_curve(labels, event, bins=5, binning="equal_mass")
    np.testing.assert_array_equal(curve.count, [4])
    np.testing.assert_allclose(curve.frequency, [0.75])


def test_calibrated_predictions_have_a_smaller_error_than_others():
    labels = np.array([RNG.choice(4, p=row) for row in P])
    right = scores.expected_calibration_error(labels, P).value
    sharpened = P**3 / (P**3).sum(-1, keepdims=True)
    assert scores.expected_calibration_error(labels, sharpened).value > 3 * right


def test_renumbering_the_classes_changes_nothing():
    p = np.round(P, 1)  # with ties
    p[:, 3] = 1 - p[:, :3].sum(-1)
    p = np.abs(p) / np.abs(p).sum(-1, keepdims=True)
    numbers = np.array([2, 0, 3, 1])
    one = scores.reliability_curve(LABELS, p)
    other = scores.reliability_curve(numbers[LABELS], p[:, np.argsort(numbers)])
    np.testing.assert_allclose(other.frequency, one.frequency)
    np.testing.assert_allclose(other.confidence, one.confidence)
    np.testing.assert_allclose(other.upper, one.upper)
