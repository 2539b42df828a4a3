"""AutoLaplace asked again: other sites, another value that the model closes over."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO

from pyrox_ppl.infer import AutoLaplace, CompiledSVI

pytestmark = pytest.mark.rank_promotion
X = jnp.array([0.5, -1.0, 2.0])
NOISE = {"value": 0.5}


def model(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(level + slope * x, NOISE["value"]), obs=y)


def start(structure, **options):
    """A guide that has seen the model, and its mode before any step."""
    guide = AutoLaplace(model, structure, **options)
    svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    return guide, svi.get_params(svi.init(jax.random.key(0), X, y=X))


def add(guide, params):
    return guide.add_curvature(params, X, y=X, max_decrement=np.inf)


def test_a_second_curvature_replaces_the_first():
    every, params = start("diag")
    one, _ = start("diag", where="level")
    again = add(one, add(every, params))
    fresh = add(one, params)
    assert again.keys() == fresh.keys()
    draws = one.sample_posterior(jax.random.key(1), again, sample_shape=(5,))
    assert np.ptp(draws["slope"]) == 0.0
    assert np.ptp(draws["level"]) > 0.0
    np.testing.assert_allclose(one.log_evidence(again), one.log_evidence(fresh))


def test_a_value_that_the_model_closes_over_may_change(monkeypatch):
    for structure in ("full", "diag"):
        guide, params = start(structure)
        for noise in (0.5, 2.0):
            monkeypatch.setitem(NOISE, "value", noise)
            fit = add(guide, params)
            low, high = guide.quantiles(fit, jnp.array([0.5, 0.8413447]))["level"]
            rows = np.stack([X, np.ones(3)], 1) / noise
            precision = rows.T @ rows + np.diag([1.0, 0.25])
            exact = {
                "full": np.linalg.inv(precision)[1, 1],
                "diag": 1 / precision[1, 1],
            }
            np.testing.assert_allclose(high - low, exact[structure] ** 0.5, rtol=1e-3)


def test_random_columns_estimate_the_fisher_matrix_and_all_of_them_are_exact():
    def three_classes(y):
        logits = numpyro.sample("f", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide, y = AutoLaplace(three_classes, "full"), jnp.zeros(20_000, int)
    svi = CompiledSVI(three_classes, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    svi.init(jax.random.key(0), y)
    params, p = {"f_auto_loc": jnp.array([0.5, 0.0, -1.0])}, np.exp([0.5, 0.0, -1.0])
    exact = np.diag(p / p.sum()) - np.outer(p, p) / p.sum() ** 2
    for samples, close in ((1, 0.02), (2, 1e-4)):
        fit = guide.add_curvature(
            params, y, fisher_samples=samples, max_decrement=np.inf
        )
        found = fit["auto_laplace.curvature.full.full"] / len(y)
        np.testing.assert_allclose(found, exact, atol=close)
        assert (np.abs(found - exact).max() > 1e-4) == (samples == 1)
    with pytest.raises(ValueError, match="positive number, not 0"):
        guide.add_curvature(params, y, fisher_samples=0)
