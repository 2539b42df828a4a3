"""AutoLaplace asked again: other sites, another value that the model closes over."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO

from pyrox_ppl.infer import AutoLaplace, CompiledSVI, MinibatchLoader

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


def three_classes(y, size=None):
    logits = numpyro.sample("f", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    logits = jnp.ones((len(y), 1)) @ logits[None]
    with numpyro.plate("row", size or len(y), subsample_size=len(y)):
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)


def diagonal(params, *args, structure="diag", **options):
    """The curvature's diagonal for each row of 20,000 in three classes."""
    guide = AutoLaplace(three_classes, structure)
    svi = CompiledSVI(three_classes, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    svi.init(jax.random.key(0), jnp.zeros(2, int))
    fit = guide.add_curvature(params, *args, max_decrement=np.inf, **options)
    found = fit[f"auto_laplace.curvature.{structure}.{FORMS[structure]}"]
    return (jnp.diag(found) if structure == "full" else found) / 20_000


FORMS = {"diag": "f.diagonal", "full": "full"}
LOGITS = jnp.array([0.5, 0.0, -1.0])


def test_random_columns_estimate_the_fisher_matrix_and_all_of_them_are_exact():
    y, p = jnp.zeros(20_000, int), np.exp(LOGITS) / np.exp(LOGITS).sum()
    for structure, samples, close in (
        ("diag", 1, 0.02),
        ("diag", 2, 3e-4),
        ("full", 1, 3e-4),
    ):
        found = diagonal(
            {"f_auto_loc": LOGITS}, y, structure=structure, fisher_samples=samples
        )
        np.testing.assert_allclose(found, p * (1 - p), atol=close)
        assert (np.abs(found - p * (1 - p)).max() > 4e-4) == (close > 1e-3)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"positive integer, got {wrong}"):
            diagonal({"f_auto_loc": LOGITS}, y, fisher_samples=wrong)


def test_batches_and_members_have_random_columns_of_their_own():
    params = {"f_auto_loc": LOGITS}
    y, half = jnp.zeros(20_000, int), jnp.zeros(10_000, int)
    loader = MinibatchLoader((y,), 10_000, rng_key=jax.random.key(0))
    one, both, exact = (
        diagonal(params, half, size=10_000, fisher_samples=1),
        diagonal(params, loader, size=20_000, fisher_samples=1),
        diagonal(params, y),
    )
    # Equal signs in both batches would give twice the first batch's.
    assert np.abs(both - 2 * one).max() > 1e-4
    np.testing.assert_allclose(both, exact, atol=0.02)
    first, second = diagonal(
        {"f_auto_loc": jnp.stack([LOGITS] * 2)}, y, fisher_samples=1
    )
    assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize(
    "structure", ["kron", pytest.param("full", marks=pytest.mark.slow)]
)
def test_no_program_keeps_a_model_and_its_data(structure):
    data = jnp.arange(3.0)

    def own(y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 3):
            numpyro.sample("y", dist.Normal(slope * data, 1.0), obs=y)

    params = {"slope_auto_loc": jnp.array(0.3)}
    svi = SVI(own, AutoLaplace(own, structure), numpyro.optim.Adam(0.1), Trace_ELBO())
    svi.init(jax.random.key(0), data)
    fit = svi.guide.add_curvature(params, data, max_decrement=np.inf)
    svi.guide.sample_posterior(jax.random.key(1), fit)
    svi.guide.tune_prior(fit, data)
    alive = weakref.ref(own)
    del own, svi
    gc.collect()
    assert alive() is None
