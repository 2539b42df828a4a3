"""Fans of layers, counted by layers whose weights are all one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed, trace

import pyrox_ppl as px
from pyrox_ppl import priors

KEY = jax.random.key(0)
LAYERS = {
    "Conv2d": (eqx.nn.Conv2d, {"kernel_size": (4, 5)}),
    "strided": (eqx.nn.Conv2d, {"kernel_size": 4, "stride": (2, 1)}),
    "grouped": (eqx.nn.Conv2d, {"kernel_size": 3, "groups": 4}),
    "transposed": (eqx.nn.ConvTranspose2d, {"kernel_size": (4, 5)}),
    "its stride": (eqx.nn.ConvTranspose2d, {"kernel_size": 4, "stride": (2, 4)}),
    "its uneven stride": (eqx.nn.ConvTranspose2d, {"kernel_size": 3, "stride": 2}),
    "its longer stride": (eqx.nn.ConvTranspose2d, {"kernel_size": 2, "stride": 4}),
    "its groups": (
        eqx.nn.ConvTranspose2d,
        {"kernel_size": 4, "stride": 2, "groups": 4, "dilation": 3},
    ),
}


def variances(module, rule):
    with seed(rng_seed=0), trace() as sites, px.bayesianize(prior=rule):
        px.bind(module, "net")
    return {name: float(site["fn"].variance.max()) for name, site in sites.items()}


@pytest.mark.parametrize("name", LAYERS)
def test_priors_count_what_a_convolution_sums_over(name):
    kind, options = LAYERS[name]
    layer = kind(8, 16, use_bias=False, key=KEY, **options)
    ones = eqx.tree_at(lambda c: c.weight, layer, jnp.ones_like(layer.weight))
    x = jnp.ones((8, 32, 32))
    middle = (slice(None), slice(12, 20), slice(12, 20))  # a multiple of each stride
    outputs = float(ones(x)[middle].mean())  # of inputs of unit variance, over weights
    inputs = float(jax.grad(lambda x: ones(x).sum())(x)[middle].mean())
    out = variances(layer, priors.fan_in())["net.weight"] * outputs
    np.testing.assert_allclose(out, 1.0, rtol=1e-5)
    both = variances(layer, priors.glorot())["net.weight"]
    np.testing.assert_allclose(both, 2 / (inputs + outputs), rtol=1e-5)


def test_a_bias_beside_a_transposed_convolution_has_the_same_scale():
    layer = eqx.nn.ConvTranspose1d(8, 16, 4, 2, key=KEY)
    found = variances(layer, priors.fan_in())
    np.testing.assert_allclose(list(found.values()), 1 / 16, rtol=1e-6)


def test_an_input_of_an_embedding_reaches_the_length_of_a_row():
    table = eqx.nn.Embedding(1000, 7, key=KEY)
    found = variances(table, priors.glorot())["net.weight"]
    np.testing.assert_allclose(found, 2 / (1 + 7), rtol=1e-6)


STACKED = {
    "Linear": lambda key: eqx.nn.Linear(8, 6, key=key),
    "Conv1d": lambda key: eqx.nn.Conv1d(4, 6, 3, groups=2, key=key),
    "ConvTranspose2d": lambda key: eqx.nn.ConvTranspose2d(4, 6, 4, 2, key=key),
    "GRUCell": lambda key: eqx.nn.GRUCell(8, 5, key=key),
    "MultiheadAttention": lambda key: eqx.nn.MultiheadAttention(2, 8, key=key),
    "SirenDense": lambda key: px.nn.SirenDense.init(8, 6, key=key),
}


def fans(module):
    found = {}

    def rule(parameter):
        found[parameter.name] = parameter.fan_in, parameter.fan_out
        return dist.Normal()

    px.explain(px.bayesianize(lambda: px.bind(module, "net"), prior=rule))
    return found


@pytest.mark.parametrize("name", STACKED)
def test_stacked_layers_have_the_fans_of_one(name):
    stacked = eqx.filter_vmap(STACKED[name])(jax.random.split(KEY, 2))
    assert fans(stacked) == fans(STACKED[name](KEY))


def test_a_weight_that_shared_puts_into_a_layer_counts_what_that_layer_sums_over():
    pair = eqx.nn.Embedding(7, 4, key=KEY), eqx.nn.Linear(4, 7, key=KEY)
    shared = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)
    found = fans(shared)
    assert found == {"net.pytree.0.weight": (4, 7), "net.pytree.1.bias": (4, 7)}
