"""Scores of predictive draws against scoringrules and closed forms of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import scoringrules as sr

from pyrox_ppl import scores

RNG = np.random.default_rng(0)
Y = RNG.normal(size=(4, 3))
DRAWS = RNG.normal(size=(50, 4, 3))
WEIGHTS = RNG.uniform(size=50)


def test_the_plain_crps_is_scoringrules():
    expected = sr.crps_ensemble(Y, DRAWS, m_axis=0, estimator="nrg")
    np.testing.assert_allclose(scores.crps(Y, DRAWS, fair=False), expected, rtol=1e-12)


def test_the_fair_crps_is_scoringrules():
    expected = sr.crps_ensemble(Y, DRAWS, m_axis=0, estimator="fair")
    np.testing.assert_allclose(scores.crps(Y, DRAWS), expected, rtol=1e-10)


def test_the_weighted_crps_is_scoringrules():
    repeated = np.broadcast_to(WEIGHTS[:, None, None], DRAWS.shape)
    expected = sr.crps_ensemble(Y, DRAWS, m_axis=0, ens_w=repeated, estimator="nrg")
    ours = scores.crps(Y, DRAWS, fair=False, weights=WEIGHTS)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_the_crps_of_many_gaussian_draws_is_the_closed_form():
    y, draws = RNG.normal(size=5), RNG.normal(1.0, 2.0, size=(40_000, 5))
    expected = sr.crps_normal(y, 1.0, 2.0)
    np.testing.assert_allclose(scores.crps(y, draws), expected, atol=0.03)


def test_the_crps_of_counts_is_the_ranked_probability_score():
    counts = RNG.integers(0, 4, size=(500, 6))
    y = RNG.integers(0, 4, size=6)
    p = np.stack([(counts == k).mean(0) for k in range(4)], axis=-1)
    expected = scores.ranked_probability_score(y, p)
    np.testing.assert_allclose(scores.crps(y, counts, fair=False), expected, rtol=1e-9)


@pytest.mark.parametrize("fair", [True, False])
def test_the_energy_score_is_scoringrules(fair):
    expected = sr.es_ensemble(Y, DRAWS, 0, -1, estimator="fair" if fair else "nrg")
    np.testing.assert_allclose(
        scores.energy_score(Y, DRAWS, fair=fair), expected, rtol=1e-10
    )


def test_the_weighted_energy_score_is_scoringrules():
    repeated = np.broadcast_to(WEIGHTS[:, None], DRAWS.shape[:2])
    expected = sr.es_ensemble(Y, DRAWS, 0, -1, ens_w=repeated, estimator="nrg")
    ours = scores.energy_score(Y, DRAWS, fair=False, weights=WEIGHTS)
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


@pytest.mark.parametrize("fair", [True, False])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_energy_score_of_one_component_is_the_crps(fair, weights):
    options = {"fair": fair, "weights": weights}
    ours = scores.energy_score(Y[..., None], DRAWS[..., None], **options)
    np.testing.assert_allclose(ours, scores.crps(Y, DRAWS, **options), rtol=1e-9)


@pytest.mark.parametrize("score", [scores.crps, scores.energy_score])
@pytest.mark.parametrize("fair", [True, False])
def test_equal_weights_are_no_weights(score, fair):
    ours = score(Y, DRAWS, fair=fair, weights=np.full(50, 3.0))
    np.testing.assert_allclose(ours, score(Y, DRAWS, fair=fair), rtol=1e-9)


def test_a_draw_of_weight_zero_is_no_draw():
    weights = np.r_[np.ones(30), np.zeros(20)]
    for score in (scores.crps, scores.energy_score):
        ours = score(Y, DRAWS, weights=weights)
        np.testing.assert_allclose(ours, score(Y, DRAWS[:30]), rtol=1e-9)


def test_the_energy_score_of_many_draws_in_blocks_is_that_of_all_pairs(monkeypatch):
    whole = scores.energy_score(Y, DRAWS, weights=WEIGHTS)
    monkeypatch.setattr("pyrox_ppl.scores._crps._PAIRS", 7 * 50)
    ours = scores.energy_score(Y, DRAWS, weights=WEIGHTS)
    np.testing.assert_allclose(ours, whole, rtol=1e-12)


def test_the_fair_scores_have_no_bias_by_few_draws():
    y, few = RNG.normal(size=40_000), RNG.normal(size=(2, 40_000))
    expected = sr.crps_normal(y, 0.0, 1.0)
    error = scores.crps(y, few) - expected
    assert abs(error.mean()) < 4 * error.std() / 200
    assert scores.crps(y, few, fair=False).mean() > expected.mean() + 0.2


def test_the_log_score_of_gaussian_draws_is_the_closed_form():
    mean = RNG.normal(size=200_000)
    y = np.array([0.3, -2.0])
    log_likelihood = scipy.stats.norm.logpdf(y, mean[:, None], 1.0)
    expected = scipy.stats.norm.logpdf(y, 0.0, np.sqrt(2.0))
    np.testing.assert_allclose(scores.log_score(log_likelihood), expected, atol=0.01)


def test_the_log_score_is_a_mixture_density():
    means, stds = RNG.normal(size=6), RNG.uniform(0.5, 2, size=6)
    weights = RNG.dirichlet(np.ones(6))
    log_likelihood = scipy.stats.norm.logpdf(0.7, means, stds)
    ours = scores.log_score(log_likelihood, weights=weights)
    np.testing.assert_allclose(ours, -sr.logs_mixnorm(0.7, means, stds, weights))
    assert ours.shape == ()


def test_the_log_score_does_not_underflow():
    lowest = np.array([[-1e5, -np.inf, -np.inf], [-1e5, -np.inf, 0.0]])
    expected = [-1e5, -np.inf, np.log(0.5)]
    np.testing.assert_allclose(scores.log_score(lowest), expected)


def test_a_large_offset_costs_no_digits():
    shifted = scores.crps(Y + 1e9, DRAWS + 1e9)
    np.testing.assert_allclose(shifted, scores.crps(Y, DRAWS), atol=1e-6)


def test_the_pit_of_a_calibrated_count_is_uniform():
    y, draws = RNG.poisson(1.5, size=4000), RNG.poisson(1.5, size=(7, 4000))
    ours = scores.pit(y, draws, rng_key=jax.random.key(0))
    assert scipy.stats.kstest(ours, "uniform").pvalue > 0.01
    narrow = scores.pit(y, np.full((7, 4000), 1), rng_key=jax.random.key(0))
    assert scipy.stats.kstest(narrow, "uniform").pvalue < 1e-6


def test_the_pit_of_many_gaussian_draws_is_the_distribution_function():
    y, draws = RNG.normal(size=8), RNG.normal(size=(20_000, 8))
    ours = scores.pit(y, draws, rng_key=jax.random.key(0))
    np.testing.assert_allclose(ours, scipy.stats.norm.cdf(y), atol=0.02)


@pytest.mark.parametrize(
    ("lowest", "y", "highest"), [(0.0, 0.5, 1 / 3), (1 / 3, 2.0, 1.0)]
)
def test_the_pit_stays_within_the_ranks(lowest, y, highest):
    keys = jax.random.split(jax.random.key(0), 50)
    draws = np.array([[1.0], [2.0]])
    ours = [scores.pit(np.array([y]), draws, rng_key=key)[0] for key in keys]
    assert lowest <= min(ours) < lowest + 0.1
    assert highest - 0.1 < max(ours) <= highest


@pytest.mark.parametrize("elements", [1, 170, 2**18])
def test_blocks_of_rows_change_nothing(monkeypatch, elements):
    monkeypatch.setattr("pyrox_ppl.scores._row_blocks.ELEMENTS", elements)
    plain = sr.crps_ensemble(Y, DRAWS, m_axis=0, estimator="fair")
    np.testing.assert_allclose(scores.crps(Y, DRAWS), plain, rtol=1e-10)
    energy = sr.es_ensemble(Y, DRAWS, 0, -1, estimator="fair")
    np.testing.assert_allclose(scores.energy_score(Y, DRAWS), energy, rtol=1e-10)
    log = scipy.special.logsumexp(DRAWS, axis=0) - np.log(50)
    np.testing.assert_allclose(scores.log_score(DRAWS), log)
    lower, upper = scores.central_interval(DRAWS, level=0.8)
    np.testing.assert_allclose(lower, np.quantile(DRAWS, 0.1, axis=0))
    np.testing.assert_allclose(upper, np.quantile(DRAWS, 0.9, axis=0))
    pit = scores.pit(Y, DRAWS, rng_key=jax.random.key(0))
    np.testing.assert_allclose(pit, (DRAWS < Y).mean(0), atol=0.021)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_arrays_of_jax_give_double_precision(dtype):
    y, draws = jnp.asarray(Y * 3).astype(dtype), jnp.asarray(DRAWS * 3).astype(dtype)
    expected = sr.crps_ensemble(
        np.asarray(y, float), np.asarray(draws, float), m_axis=0, estimator="fair"
    )
    ours = scores.crps(y, draws)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_the_arguments_stay_as_they_are():
    y, draws = Y.copy(), DRAWS.copy()
    scores.crps(y, draws)
    scores.crps(y, draws, weights=WEIGHTS)
    scores.crps(y[0, 0], draws[:, 0, 0])
    scores.energy_score(y, draws)
    scores.log_score(draws)
    np.testing.assert_array_equal(draws, DRAWS)
    np.testing.assert_array_equal(y, Y)
