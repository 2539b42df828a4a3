"""The three networks of the benchmarks, and the three ways to make them Bayesian."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import random_eqx_module
from numpyro.handlers import seed, substitute

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, ConditionedINR, FiLM

NETWORKS = ("field", "mlp", "deep")
WAYS = ("by hand", "random module", "ours")
PRIOR = 0.3


def network(which, points=128):
    """A network, how it is called, its inputs, and which of its arrays are random."""
    key = jax.random.key(0)
    if which == "field":
        inner = SIREN.init(
            2, 32, 1, depth=6, first_omega=2.0, hidden_omega=2.0, key=key
        )
        field = ConditionedINR.init(inner, conditioner_cls=FiLM, cond_dim=4, key=key)
        rows = [jax.random.normal(key, (points, size)) for size in (2, 4)]
        return field, lambda net, x, z: net(x, z)[:, 0], tuple(rows), ".conditioners"
    width, depth = (32, 2) if which == "mlp" else (16, 19)
    net = eqx.nn.MLP(1, 1, width, depth, activation=jnp.tanh, key=key)
    x = jnp.linspace(-1.0, 1.0, points)[:, None]
    return net, lambda net, x: jax.vmap(net)(x)[:, 0], (x,), ""


def by_hand(net, random):
    """A sample site per random array, as a NumPyro user writes it."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(net)
    drawn = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        if eqx.is_inexact_array(leaf) and name.startswith(random):
            prior = dist.Normal(0.0, PRIOR).expand(leaf.shape).to_event(leaf.ndim)
            leaf = numpyro.sample(name, prior)
        drawn.append(leaf)
    return jax.tree.unflatten(treedef, drawn)


def random_module(net, random):
    """All arrays random: it has no choice that keeps the others as they are."""
    return random_eqx_module("net", net, prior=dist.Normal(0.0, PRIOR))


def ours(net, random):
    with px.bayesianize(prior_std=PRIOR):
        return px.bind(net, "net")


MAKERS = dict(zip(WAYS, (by_hand, random_module, ours), strict=True))


def make_model(way, net, call, random):
    """A model that observes the network's values, and returns them."""

    def model(*inputs, y=None):
        f = call(MAKERS[way](net, random), *inputs)
        with numpyro.plate("row", f.shape[0]):
            numpyro.sample("y", dist.Normal(f, 0.1), obs=y)
        return f

    return model


def setting(which, way, points=128):
    """A model, its inputs and what it observes."""
    net, call, inputs, random = network(which, points)
    model = make_model(way, net, call, random)
    y = jnp.sin(3.0 * inputs[0][:, 0])
    return model, jax.block_until_ready((inputs, y))


def functions(model, inputs, samples):
    """The network's values at draws of its weights, ``(draw, point)``."""

    def one(sites):
        return seed(substitute(model, data=sites), rng_seed=0)(*inputs)

    return jax.jit(lambda draws: jax.lax.map(one, draws))(samples)
