"""calibration: scores against their closed forms for normal predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import pyrox_ppl as px

N, DRAWS, STD = 300, 1500, 0.7
Y = np.float32(np.random.default_rng(0).normal(1.0, STD, N))


def tree_of(scale):
    """Predictions N(1, scale) of data that are N(1, STD)."""

    def model(y=None):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", N):
            numpyro.sample("y", dist.Normal(mean, scale), obs=y)

    return px.to_datatree({"mean": jnp.ones(DRAWS)}, y=Y, model=model)


@pytest.fixture(scope="module")
def scores():
    return px.calibration(tree_of(STD))


def test_the_crps_is_that_of_a_normal(scores):
    z = (Y - 1.0) / STD
    closed = STD * (
        z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi)
    )
    np.testing.assert_allclose(scores.crps, closed, atol=0.06)
    assert scores.crps.mean() == pytest.approx(closed.mean(), abs=0.003)


def test_the_elpd_is_the_log_density(scores):
    density = stats.norm.logpdf(Y, 1.0, STD)
    assert scores.elpd == pytest.approx(density.sum(), rel=1e-4)
    assert scores.elpd_se == pytest.approx(density.std() * np.sqrt(N), rel=1e-3)


def test_calibrated_predictions_cover_and_have_a_uniform_pit(scores):
    for level, covered in zip(scores.levels, scores.coverage, strict=True):
        assert abs(covered - level) < 4 * np.sqrt(level * (1 - level) / N)
    assert stats.kstest(scores.pit, "uniform").pvalue > 0.01
    np.testing.assert_allclose(scores.pit, stats.norm.cdf(Y, 1.0, STD), atol=0.06)


def test_predictions_that_are_too_sure_are_found():
    sure = px.calibration(tree_of(STD / 3))
    assert sure.coverage[2] < 0.6
    assert stats.kstest(sure.pit, "uniform").pvalue < 1e-6
    assert "90 % interval covers" in str(sure)


def test_the_pit_of_discrete_data_is_uniform():
    def model(y=None):
        rate = numpyro.sample("rate", dist.Exponential(1.0))
        with numpyro.plate("row", N):
            numpyro.sample("y", dist.Binomial(1, 0.5 * rate), obs=y)

    y = np.random.default_rng(1).permutation(np.repeat([0, 1], N // 2))
    tree = px.to_datatree({"rate": jnp.ones(DRAWS)}, y=y, model=model)
    pit = px.calibration(tree, seed=3).pit
    assert stats.kstest(pit, "uniform").pvalue > 0.01


def test_what_it_needs_is_named():
    tree = px.to_datatree({"a": jnp.ones(4)})
    with pytest.raises(ValueError, match="'posterior_predictive'"):
        px.calibration(tree)
    with pytest.raises(ValueError, match=r"not an observed site; these are: \['y'\]"):
        px.calibration(tree_of(STD), "z")


def test_held_out_data_are_scored_by_the_draws_of_a_tree():
    def model(x, y=None):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)

    slopes = jax.random.normal(jax.random.key(0), (2, 30))
    tree = px.to_datatree({"slope": slopes}, batch_ndims=2)
    x, y = jnp.linspace(0.0, 1.0, 5), jnp.linspace(0.0, 2.0, 5)
    held_out = px.to_datatree(tree, x, y=y, model=model)
    density = stats.norm.logpdf(y, np.asarray(slopes)[..., None] * np.asarray(x), 0.5)
    elpd = np.log(np.exp(density).mean((0, 1))).sum()
    assert px.calibration(held_out).elpd == pytest.approx(elpd, rel=1e-4)
