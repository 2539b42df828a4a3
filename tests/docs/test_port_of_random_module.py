"""A port of `random_eqx_module` is the same model, to the last digit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import random_eqx_module
from numpyro.handlers import seed, trace
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density

import pyrox_ppl as px

pytestmark = pytest.mark.rank_promotion
MLP = eqx.nn.MLP(1, 1, width_size=8, depth=1, key=jax.random.key(0))
X = jnp.linspace(-1.0, 1.0, 20)[:, None]
Y = jnp.sin(3 * X)


def before(x, y=None):
    net = random_eqx_module("net", MLP, dist.Normal(0.0, 0.5), scope_divider=".")
    numpyro.sample("y", dist.Normal(jax.vmap(net)(x), 0.1).to_event(2), obs=y)


def after(x, y=None):
    with px.bayesianize(prior_std=0.5):
        net = px.bind(MLP, "net")
    numpyro.sample("y", dist.Normal(jax.vmap(net)(x), 0.1).to_event(2), obs=y)


def rename(name):
    return name.replace("[", ".").replace("]", "")


@pytest.mark.parametrize("number", range(3))
def test_the_log_density_is_the_same(number):
    sites = trace(seed(before, number)).get_trace(X)
    values = {
        name: site["value"]
        for name, site in sites.items()
        if name.startswith("net.") and site["type"] == "sample"
    }
    assert len(values) == 4
    old, _ = log_density(before, (X, Y), {}, values)
    new, _ = log_density(after, (X, Y), {}, {rename(n): v for n, v in values.items()})
    assert old == new


@pytest.mark.slow
def test_the_losses_of_svi_are_the_same():
    losses = []
    for model in (before, after):
        guide = AutoNormal(model)
        svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        fit = svi.run(jax.random.key(1), 5, X, Y, progress_bar=False)
        losses.append(fit.losses)
    np.testing.assert_array_equal(*losses)
