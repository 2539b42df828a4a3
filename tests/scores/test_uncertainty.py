"""Uncertainty splits against scipy, scikit-learn and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import mutual_info_score

from pyrox_ppl import scores

RNG = np.random.default_rng(0)
DRAWS = RNG.dirichlet(np.ones(3), size=(40, 5, 2))
WEIGHTS = RNG.uniform(size=40)


def test_entropies_are_those_of_scipy():
    split = scores.entropy_split(DRAWS)
    total = scipy.stats.entropy(DRAWS.mean(0), axis=-1)
    aleatoric = scipy.stats.entropy(DRAWS, axis=-1).mean(0)
    np.testing.assert_allclose(split.total, total)
    np.testing.assert_allclose(split.aleatoric, aleatoric)
    np.testing.assert_allclose(split.epistemic, total - aleatoric)
    np.testing.assert_allclose(scores.mutual_information(DRAWS), split.epistemic)
    ours = scores.predictive_entropy(DRAWS.mean(0))
    np.testing.assert_allclose(ours, total)


def test_the_epistemic_entropy_is_the_mutual_information_of_draw_and_label():
    table = RNG.multinomial(1000, np.ones(3) / 3, size=40)
    expected = mutual_info_score(None, None, contingency=table)
    np.testing.assert_allclose(scores.mutual_information(table / 1000), expected)


def test_weights_are_those_of_the_draws():
    w = WEIGHTS / WEIGHTS.sum()
    split = scores.entropy_split(DRAWS, weights=WEIGHTS)
    mean = np.average(DRAWS, axis=0, weights=w)
    np.testing.assert_allclose(split.total, scipy.stats.entropy(mean, axis=-1))
    entropies = np.average(scipy.stats.entropy(DRAWS, axis=-1), axis=0, weights=w)
    np.testing.assert_allclose(split.aleatoric, entropies)
    weighted = scores.mutual_information(DRAWS, weights=WEIGHTS)
    np.testing.assert_allclose(weighted, split.epistemic)


def test_draws_that_agree_leave_nothing_to_learn():
    sure = np.array([[[1.0, 0.0], [0.5, 0.5], [0.3, 0.7]]] * 4)
    split = scores.entropy_split(sure)
    np.testing.assert_allclose(split.epistemic, 0, atol=1e-15)
    assert (split.epistemic >= 0).all()
    np.testing.assert_allclose(split.total[:2], [0, np.log(2)], atol=1e-15)


def test_renumbering_the_classes_changes_nothing():
    for ours, other in zip(
        scores.entropy_split(DRAWS),
        scores.entropy_split(DRAWS[..., [2, 0, 1]]),
        strict=True,
    ):
        np.testing.assert_allclose(other, ours)


@pytest.mark.parametrize("elements", [1, 40 * 3 * 4])
def test_blocks_of_rows_change_nothing(monkeypatch, elements):
    whole = scores.entropy_split(DRAWS), scores.variance_split(DRAWS, DRAWS)
    monkeypatch.setattr("pyrox_ppl.scores._row_blocks.ELEMENTS", elements)
    blocks = scores.entropy_split(DRAWS), scores.variance_split(DRAWS, DRAWS)
    for one, other in zip(whole, blocks, strict=True):
        for part, expected in zip(other, one, strict=True):
            np.testing.assert_allclose(part, expected)


def test_probabilities_of_jax_give_double_precision():
    split = scores.entropy_split(jnp.asarray(DRAWS))
    assert split.total.dtype == np.float64
    np.testing.assert_allclose(split.total, scores.entropy_split(DRAWS).total, 1e-5)


def test_the_variance_of_a_mixture_of_gaussians_is_the_closed_form():
    mean, std = RNG.normal(size=(6, 3)), RNG.uniform(0.5, 2, size=(6, 3))
    split = scores.variance_split(mean, std**2)
    second = (mean**2 + std**2).mean(0)
    np.testing.assert_allclose(split.total, second - mean.mean(0) ** 2)
    np.testing.assert_allclose(split.aleatoric, (std**2).mean(0))
    np.testing.assert_allclose(split.epistemic, mean.var(0))


def test_the_variances_may_have_weights():
    mean, variance = RNG.normal(size=(6, 3)), RNG.uniform(size=(6, 3))
    weights = np.array([1, 0, 2, 0, 0, 1])
    split = scores.variance_split(mean, variance, weights=weights)
    repeated = [0, 2, 2, 5]
    expected = scores.variance_split(mean[repeated], variance[repeated])
    for ours, part in zip(split, expected, strict=True):
        np.testing.assert_allclose(ours, part)
