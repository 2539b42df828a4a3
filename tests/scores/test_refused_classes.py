"""Bad labels and class probabilities: what came and what to do."""

import jax
import numpy as np
import pytest

from pyrox_ppl import scores

KEY = jax.random.key(0)
NAN = np.array([0.0, np.nan, 0.0, 0.0])
LABELS, P = np.array([0, 1, 2, 1]), np.full((4, 3), 1 / 3)


def fit_sets(labels, probabilities):
    return scores.ConformalSets.fit(labels, probabilities, level=0.5, rng_key=KEY)


def rejection(labels, probabilities):
    return scores.accuracy_rejection_curve(labels, probabilities, np.ones(4))


OF_CLASSES = [
    scores.class_log_score,
    scores.brier_score,
    scores.ranked_probability_score,
    scores.accuracy,
    scores.reliability_curve,
    scores.expected_calibration_error,
    scores.Temperature.fit,
    fit_sets,
    rejection,
]
OF_EVENTS = [
    scores.class_log_score,
    scores.brier_score,
    scores.accuracy,
    scores.reliability_curve,
    scores.expected_calibration_error,
    rejection,
]


@pytest.mark.parametrize("score", OF_CLASSES)
@pytest.mark.parametrize(
    ("labels", "p", "says"),
    [
        (np.array([1, 2, 3, 1]), P, "from 0 to 2 for 3 classes, got 1 to 3: count"),
        (np.array([-1, 2, 0, 1]), P, "from 0 to 2 for 3 classes, got -1 to 2"),
        (np.array([0.5, 1, 2, 0]), P, "class numbers, which are whole; got 0.5"),
        (NAN, P, "labels are NaN or infinite for 1 of 4"),
        (LABELS, 2 * P, "must sum to 1 .* sum to 2"),
        (LABELS, P - 1, "turn logits into probabilities"),
        (LABELS, P * np.nan, "probabilities are NaN for 12 of 12"),
        (LABELS[:3], P, r"shape \(3,|shape \(4,\)"),
        (LABELS, P[None], r"\(4,|\(1, 4\)"),
        (LABELS, np.ones((4, 1)), "at least two classes"),
    ],
)
def test_labels_and_probabilities(score, labels, p, says):
    with pytest.raises(ValueError, match=says):
        score(labels, p)


@pytest.mark.parametrize("score", OF_EVENTS)
@pytest.mark.parametrize(
    ("labels", "p", "says"),
    [
        (np.array([0, 1, 2, 1]), np.full(4, 0.5), "from 0 to 1 for 2 classes"),
        (np.array([0, 1, 1, 1]), np.full(4, 1.5), "sigmoid"),
        (np.array([0, 1, 1, 1]), NAN, "probabilities are NaN for 1 of 4"),
    ],
)
def test_events(score, labels, p, says):
    with pytest.raises(ValueError, match=says):
        score(labels, p)


def test_one_hot_labels():
    with pytest.raises(ValueError, match=r"one-hot: .*argmax"):
        scores.brier_score(np.eye(3), np.full((3, 3), 1 / 3))


def test_a_binary_outcome_has_no_ranks():
    with pytest.raises(ValueError, match="`brier_score`"):
        scores.ranked_probability_score(LABELS % 2, np.full(4, 0.5))


@pytest.mark.parametrize("fit", [scores.Temperature.fit, fit_sets])
def test_a_binary_outcome_needs_an_axis_of_classes_to_be_recalibrated(fit):
    with pytest.raises(ValueError, match=r"last axis of classes here.*np\.stack"):
        fit(LABELS % 2, np.full(4, 0.5))


def test_bins():
    with pytest.raises(ValueError, match="at least one bin, got bins=0"):
        scores.reliability_curve(LABELS, P, bins=0)


@pytest.mark.wrong_types
def test_a_binning_that_is_unknown():
    with pytest.raises(ValueError, match="'equal_width' or 'equal_mass', got 'mass'"):
        scores.expected_calibration_error(LABELS, P, binning="mass")


@pytest.mark.parametrize(
    ("draws", "says"),
    [
        (np.full((5, 4), 0.1), "must sum to 1"),
        (np.full((5, 4, 1), 1.0), "at least two classes"),
        (np.full(4, 0.25), r"shape \(draws, \*rows, classes\)"),
        (np.full((5, 4, 2), np.nan), "are NaN"),
        (np.full((5, 4, 2), [-1.0, 2.0]), "softmax"),
        (np.full((5, 4, 2), 1), "must sum to 1"),
    ],
)
def test_draws_of_class_probabilities(draws, says):
    for call in (scores.entropy_split, scores.mutual_information):
        with pytest.raises(ValueError, match=says):
            call(draws)


def test_the_entropy_of_what_does_not_sum_to_1():
    with pytest.raises(ValueError, match=r"sum to 0\.9"):
        scores.predictive_entropy(np.array([[0.4, 0.5]]))


@pytest.mark.parametrize(
    ("labels", "p", "says"),
    [
        (np.ones(4), P, "all 4 labels are of class 1.*at least two classes"),
        (np.arange(3), np.eye(3)[[1, 2, 0]], "3 labels have probability zero"),
        (np.arange(3), 0.7 * np.eye(3) + 0.1, "in all 3 held-out rows.*hold out more"),
        (np.arange(3), 0.45 - 0.35 * np.eye(3), "infinite: check that"),
    ],
)
def test_temperatures_that_do_not_exist(labels, p, says):
    with pytest.raises(ValueError, match=says):
        scores.Temperature.fit(labels, p)


def test_a_temperature_takes_either_probabilities_or_logits():
    with pytest.raises(ValueError, match="either probabilities or logits"):
        scores.Temperature.fit(LABELS)
    with pytest.raises(ValueError, match="either probabilities or logits"):
        scores.Temperature(1.0, 4).apply(P, logits=P)
    with pytest.raises(ValueError, match=r"at least two classes.*np\.zeros_like"):
        scores.Temperature(1.0, 4).apply(logits=np.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"positive and finite, got 0\.0"):
        scores.Temperature(0.0, 4)
