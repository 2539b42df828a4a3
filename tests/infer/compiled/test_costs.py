"""bayesianize costs nothing in NUTS and SVI: the programs are as long as by hand."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import NUTS, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI

pytestmark = pytest.mark.rank_promotion

KEY = jax.random.key(0)
NET = eqx.nn.MLP(1, 1, 4, 1, activation=jnp.tanh, key=KEY)
X = jnp.linspace(-1.0, 1.0, 6)[:, None]
Y = X[:, 0] ** 2
PARAMETERS = ("weight", "bias")


def observe(net, x, y):
    f = jax.vmap(net)(x)[:, 0]
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, 0.1), obs=y)


def ours(x, y=None):
    with px.bayesianize(prior_std=0.5):
        net = px.bind(NET, "net")
    observe(net, x, y)


def by_hand(x, y=None):
    leaves, treedef = jax.tree.flatten(NET)
    # The names decide the order in which JAX flattens a dictionary of sites.
    names = iter([f"net.layers.{i}.{name}" for i in (0, 1) for name in PARAMETERS])
    drawn = [
        numpyro.sample(
            next(names), dist.Normal(0.0, 0.5).expand(leaf.shape).to_event(leaf.ndim)
        )
        if eqx.is_inexact_array(leaf)
        else leaf
        for leaf in leaves
    ]
    observe(jax.tree.unflatten(treedef, drawn), x, y)


def operations(function, *args):
    """The number of HLO operations of the compiled function."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return len(re.findall(r"^\s*(?:ROOT )?%?[\w.-]+ = ", text, re.MULTILINE))


def nuts_step(model):
    def step(key, x, y):
        kernel = NUTS(model, max_tree_depth=3)
        state = kernel.init(key, 5, model_args=(x,), model_kwargs={"y": y})
        return kernel.sample(state, (x,), {"y": y})

    return operations(step, KEY, X, Y)


def svi_step(model):
    guide = AutoNormal(model)
    svi = CompiledSVI(model, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    state = svi.init(KEY, X, y=Y)
    leaves = jax.tree.leaves(state.optim_state)
    return operations(lambda s: svi.update(s, X, y=Y), state), [
        leaf.shape for leaf in leaves
    ]


def test_the_nuts_step_has_the_operations_of_the_one_by_hand():
    assert nuts_step(ours) == nuts_step(by_hand) > 100


def test_the_svi_step_too_and_its_optimiser_holds_values_and_moments_alone():
    (count, shapes), (by_hand_count, by_hand_shapes) = svi_step(ours), svi_step(by_hand)
    assert count == by_hand_count > 100
    assert sorted(shapes) == sorted(by_hand_shapes)
    # A step counter; per site a location and a scale, each with two moments.
    sites = [p.shape for p in jax.tree.leaves(eqx.filter(NET, eqx.is_inexact_array))]
    assert sorted(shapes) == sorted([(), *sites * 6])
