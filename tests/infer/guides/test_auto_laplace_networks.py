"""AutoLaplace of trained networks: the in-between test, compiled runs, minibatches."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl.infer import (
    AutoLaplace,
    CompiledSVI,
    MinibatchLoader,
    init_to_stored,
    run_minibatches,
)

pytestmark = pytest.mark.rank_promotion
KEY = jax.random.key(0)
NOISE = 0.1


def model(net, x, y=None, size=None):
    with px.bayesianize(prior=px.priors.fan_in(1.5)):
        bound = px.bind(net, "net")
    f = numpyro.deterministic("f", jax.vmap(bound)(x)[:, 0])
    with numpyro.plate("row", size or len(x), subsample_size=len(x)):
        numpyro.sample("y", dist.Normal(f, NOISE), obs=y)


def two_clusters(rows):
    """Inputs in [-1, -0.7] and [0.5, 1], and nothing between them (Foong et al.)."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-1, -0.7, rows), rng.uniform(0.5, 1, rows)])
    y = np.cos(4 * x + 0.8) + NOISE * rng.normal(size=len(x))
    return np.float32(x[:, None]), np.float32(y)


def sd_of(tree, of_net, at):
    return px.predict(of_net, tree, at, sites=["f"], quantiles=())["f"].std


@pytest.mark.slow
def test_the_spread_grows_between_two_clusters_and_mean_field_does_not_show_it():
    x, y = two_clusters(50)
    net = eqx.nn.MLP(1, 1, 50, 1, activation=jnp.tanh, key=KEY)

    def own(x, y=None):
        model(net, x, y)

    guide = AutoLaplace(own, "full")
    svi = CompiledSVI(own, guide, Adam(0.01), Trace_ELBO())
    fit = svi.run(KEY, 6_000, x, y, progress_bar=False)
    fit = guide.add_curvature(fit, x, y)
    laplace = px.to_datatree(fit, x, y, guide=guide, num_samples=500)
    normal = AutoNormal(own, init_loc_fn=init_to_stored, init_scale=0.01)
    svi = CompiledSVI(own, normal, Adam(0.01), TraceMeanField_ELBO())
    mean_field = svi.run(KEY, 6_000, x, y, progress_bar=False)
    mean_field = px.to_datatree(mean_field, x, y, guide=normal, num_samples=500)
    gap = np.linspace(-0.4, 0.2, 20, dtype=np.float32)[:, None]
    ratios = []
    for tree in (laplace, mean_field):
        between, inside = (sd_of(tree, own, at) for at in (gap, x))
        ratios.append(between.mean() / inside.mean())
    print("sd in the gap / sd at the data: Laplace, mean field:", ratios)
    assert ratios[0] > 3.0
    assert ratios[1] < 2.0


def test_compiled_minibatches_give_what_all_data_at_once_give():
    x, y = two_clusters(16)
    net = eqx.nn.MLP(1, 1, 3, 1, activation=jnp.tanh, key=KEY)

    def own(x, y=None):
        model(net, x, y, size=32)

    loader = MinibatchLoader((x, y), 12, rng_key=KEY)
    guide = AutoLaplace(own, "full")
    svi = CompiledSVI(own, guide, Adam(0.01), Trace_ELBO())
    fit = run_minibatches(svi, KEY, loader, 100, progress_bar=False)
    fit = guide.add_curvature(fit, loader, max_decrement=np.inf)
    assert type(fit).__name__ == "MinibatchResult"
    whole = guide.add_curvature(fit.params, x, y, max_decrement=np.inf)
    for name, value in whole.items():
        size = np.abs(value).max()
        np.testing.assert_allclose(fit.params[name], value, rtol=1e-3, atol=1e-4 * size)
    with pytest.raises(ValueError, match="no mode for these data"):
        guide.add_curvature(fit, loader, max_decrement=1e-12)
