"""CompiledSVI with AutoFlatNormal: the exact posterior, NumPyro's loss, one order."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from pyrox_ppl.infer import (
    AutoFlatNormal,
    CompiledSVI,
    FlatNUTS,
    MinibatchLoader,
    run_minibatches,
)

# NumPyro's own transforms and its reparameterised prior broadcast.
pytestmark = pytest.mark.rank_promotion

KEY = jax.random.key(1)


def conjugate(y=None, rows=4):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("row", 4, subsample_size=rows):
        numpyro.sample("y", dist.Normal(mean[0], 0.5), obs=y)
    numpyro.sample("alone", dist.LogNormal(0.5, 0.3))


@pytest.fixture(scope="module")
def flat():
    y = jnp.array([0.3, 1.1, -0.4, 0.8])
    rate = optax.cosine_decay_schedule(0.05, 2500)
    guide, loss = AutoFlatNormal(conjugate), Trace_ELBO(num_particles=16)
    svi = CompiledSVI(conjugate, guide, optax.adam(rate), loss)
    return svi, svi.run(KEY, 2500, y, progress_bar=False), y


def test_the_flat_guide_finds_the_exact_posterior(flat):
    svi, fit, y = flat
    assert {k: v.shape for k, v in fit.params.items()} == {
        "auto_loc": (3,),
        "auto_scale": (3,),
    }
    variance = 1.0 / (1.0 + 4 / 0.25)
    # The order is that of the names.
    exact = np.array([0.5, variance * float(y.sum()) / 0.25, 0.0])
    np.testing.assert_allclose(fit.params["auto_loc"], exact, atol=0.02)
    np.testing.assert_allclose(
        fit.params["auto_scale"], [0.3, variance**0.5, 1.0], rtol=0.05
    )
    draws = Predictive(svi.guide, params=fit.params, num_samples=50)(KEY, y)
    assert draws["mean"].shape == (50, 2)
    assert (draws["alone"] > 0).all()


def test_its_loss_is_that_of_numpyros_normal_guide(flat):
    svi, fit, y = flat
    guide = AutoNormal(conjugate)
    CompiledSVI(conjugate, guide, optax.adam(0.1), Trace_ELBO()).init(KEY, y)
    many = Trace_ELBO(num_particles=4000)
    order = {"alone": slice(0, 1), "mean": slice(1, 3)}
    shape = {"alone": (), "mean": (2,)}
    by_site = {
        f"{name}_auto_{what}": fit.params[f"auto_{what}"][part].reshape(shape[name])
        for name, part in order.items()
        for what in ("loc", "scale")
    }
    # The difference of the losses has a standard deviation of about 0.02.

    def loss(guide, params):
        evaluate = jax.jit(lambda p: many.loss(KEY, p, conjugate, guide, y))
        return evaluate(params)

    ours, numpyros = loss(svi.guide, fit.params), loss(guide, by_site)
    np.testing.assert_allclose(ours, numpyros, atol=0.1)


def test_the_order_of_the_vector_is_that_of_flat_nuts_compiled_or_not(flat):
    svi, fit, y = flat
    alone = AutoFlatNormal(conjugate)
    SVI(conjugate, alone, optax.adam(0.1), Trace_ELBO()).init(KEY, y)
    kernel = FlatNUTS(conjugate)
    kernel.init(KEY, 5, model_args=(y,))
    values = kernel.get_constrain_fn((y,))(fit.params["auto_loc"])
    for guide in (svi.guide, alone):
        for name, value in guide.median(fit.params).items():
            np.testing.assert_allclose(value, values[name], rtol=1e-5)


def test_it_serves_where_numpyros_svi_does(flat):
    loader = MinibatchLoader((np.asarray(flat[2]),), 2, rng_key=KEY)
    svi = CompiledSVI(conjugate, AutoNormal(conjugate), optax.adam(0.1), Trace_ELBO())
    fit = run_minibatches(svi, KEY, loader, 2, progress_bar=False, rows=2)
    assert np.isfinite(fit.losses).all()
