"""Fans of layers, counted by layers whose weights are all one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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
