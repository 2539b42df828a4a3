"""Temperature against scikit-learn's own, a grid, and labels drawn at a known one."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from sklearn.metrics import log_loss

from pyrox_ppl import scores

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3.0, size=(4000, 4))
P = scipy.special.softmax(LOGITS, axis=-1)


def labels_at(temperature, logits=LOGITS):
    """Labels drawn from the probabilities at a temperature: the largest Gumbel."""
    noise = np.random.default_rng(1).gumbel(size=logits.shape)
    return (logits / temperature + noise).argmax(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_it_finds_the_temperature_of_the_labels(temperature):
    fitted = scores.Temperature.fit(labels_at(temperature), P)
    np.testing.assert_allclose(fitted.temperature, temperature, rtol=0.06)
    assert fitted.rows == 4000


def test_no_temperature_has_a_better_log_loss():
    labels = labels_at(1.7)
    fitted = scores.Temperature.fit(labels, P)
    best = log_loss(labels, fitted.apply(P))
    grid = fitted.temperature * np.array([0.5, 0.9, 0.99, 1.01, 1.1, 2.0])
    losses = [log_loss(labels, scores.Temperature(t, 1).apply(P)) for t in grid]
    assert min(losses) > best
    assert np.diff(losses[:3]).max() < 0 < np.diff(losses[3:]).min()


def test_the_probabilities_are_a_softmax_at_the_temperature():
    ours = scores.Temperature(2.0, 1).apply(P)
    expected = scipy.special.softmax(LOGITS / 2, axis=-1)
    np.testing.assert_allclose(ours, expected)
    ours = scores.Temperature(2.0, 1).apply(logits=LOGITS)
    np.testing.assert_allclose(ours, expected)


def test_logits_and_their_probabilities_give_the_same():
    labels = labels_at(1.7)
    one = scores.Temperature.fit(labels, P)
    other = scores.Temperature.fit(labels, logits=LOGITS + 100.0)
    np.testing.assert_allclose(one.temperature, other.temperature, rtol=1e-8)


def test_it_halves_the_calibration_error_of_new_rows():
    labels = labels_at(3.0)
    tempered = scores.Temperature.fit(labels[:2000], P[:2000]).apply(P[2000:])
    before = scores.expected_calibration_error(labels[2000:], P[2000:]).value
    after = scores.expected_calibration_error(labels[2000:], tempered).value
    assert after < before / 2
    right = scores.accuracy(labels[2000:], P[2000:])
    np.testing.assert_array_equal(scores.accuracy(labels[2000:], tempered), right)


def test_renumbering_the_classes_changes_nothing():
    labels, numbers = labels_at(1.7), np.array([2, 0, 3, 1])
    one = scores.Temperature.fit(labels, P)
    other = scores.Temperature.fit(numbers[labels], P[:, np.argsort(numbers)])
    np.testing.assert_allclose(other.temperature, one.temperature, rtol=1e-9)


def test_an_impossible_class_stays_impossible():
    logits = LOGITS[:, :3]
    p = np.pad(scipy.special.softmax(logits, axis=-1), ((0, 0), (0, 1)))
    labels = labels_at(1.7, logits)
    one, other = (
        scores.Temperature.fit(labels, p),
        scores.Temperature.fit(labels, logits=logits),
    )
    np.testing.assert_allclose(one.temperature, other.temperature, rtol=1e-8)
    assert (one.apply(p)[:, 3] == 0).all()


def test_arrays_of_jax_give_double_precision():
    labels = labels_at(1.7)
    ours = scores.Temperature.fit(jnp.asarray(labels), jnp.asarray(P))
    expected = scores.Temperature.fit(labels, P)
    np.testing.assert_allclose(ours.temperature, expected.temperature, rtol=1e-4)
    assert ours.apply(jnp.asarray(P)).dtype == np.float64
