"""ConditionedINR takes a network's layers apart only if its own call is the layers."""

import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, ConditionedINR, FiLM, SirenDense

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 2))


def linears(*widths):
    keys = jax.random.split(KEY, len(widths))
    return [
        eqx.nn.Linear(a, b, key=key)
        for a, b, key in zip(widths[:-1], widths[1:], keys, strict=False)
    ]


class Net(eqx.Module):
    """A network that computes as it is told."""

    layers: list
    scale: jax.Array
    call: types.FunctionType = eqx.field(static=True)

    def __call__(self, x):
        return self.call(self, x)


def net(call, scale=0.0):
    return Net(linears(2, 4, 4, 1), jnp.float32(scale), call)


def plain(self, x):
    for layer in self.layers:
        x = layer(x)
    return x


def relu(self, x):
    for layer in self.layers[:-1]:
        x = jax.nn.relu(layer(x))
    return self.layers[-1](x)


def activations_that_differ(self, x):
    first, second, readout = self.layers
    return readout(jnp.sin(second(jnp.tanh(first(x)))))


def residual(self, x):
    first, second, readout = self.layers
    x = first(x)
    return readout(x + second(x))


def residual_of_weight_zero(self, x):
    first, second, readout = self.layers
    x = first(x)
    return readout(second(x) + self.scale * x)


def transformed(self, x):
    return jnp.exp(plain(self, x))


def nowhere_finite(self, x):
    return jnp.log(-jnp.abs(plain(self, x)))


def encoded(self, x):
    return plain(self, jnp.sin(x))


def clipped(self, x):
    return plain(self, jnp.clip(x, -5.0, 5.0))


def reordered(self, x):
    first, second, readout = self.layers
    return readout(second(second(first(x))))


def readout_of_zeros():
    return jax.tree.map(
        lambda leaf: 0 * leaf if leaf.shape in {(1, 4), (1,)} else leaf, net(relu)
    )


class Plain:
    """No pytree, so that its arrays are none of the module's leaves."""

    def __init__(self):
        self.layers = linears(2, 4, 1)

    def __call__(self, x):
        return self.layers[1](jnp.sin(self.layers[0](x)))


def half(network):
    def cast(leaf):
        return leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(cast, network)


OTHERS = {
    **{
        call.__name__: lambda call=call: net(call)
        for call in (
            relu,
            activations_that_differ,
            residual,
            residual_of_weight_zero,
            transformed,
            nowhere_finite,
            encoded,
            clipped,
            reordered,
        )
    },
    "readout_of_zeros": readout_of_zeros,
    "no pytree": Plain,
    "bfloat16": lambda: half(net(relu)),
}


def conditioned(inner):
    return ConditionedINR.init(inner, conditioner_cls=FiLM, cond_dim=3, key=KEY)


def members(make):
    """An ensemble made by vmap: no weight has a number at construction."""

    def member(key):
        noise = jax.random.normal(key, ())
        return conditioned(
            jax.tree.map(
                lambda a: a + noise.astype(a.dtype) if eqx.is_array(a) else a, make()
            )
        )

    return eqx.filter_vmap(member)(jax.random.split(KEY, 2))


CONSTRUCTORS = {
    "plainly": lambda make: conditioned(make()),
    "jit": lambda make: eqx.filter_jit(conditioned)(make()),
    "vmap": members,
    "eval_shape": lambda make: eqx.filter_eval_shape(conditioned, make()),
}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "plainly") for name in OTHERS),
        *(("readout_of_zeros", way) for way in ("jit", "vmap", "eval_shape")),
    ],
)
def test_a_network_that_is_more_than_its_layers_is_refused(name, way):
    with pytest.raises(ValueError, match=r"another function than its own.*'input'"):
        CONSTRUCTORS[way](OTHERS[name])


def test_mode_input_takes_every_network():
    inner = net(activations_that_differ)
    film = {"conditioner_cls": FiLM, "cond_dim": 3, "in_features": 2, "key": KEY}
    field = ConditionedINR.init(inner, mode="input", **film)
    expected = jax.vmap(inner)(X)
    np.testing.assert_allclose(field(X, jnp.ones(3)), expected, rtol=1e-5)


def rewritten(self, x):
    """The layers in other operations, whose roundings differ."""
    x = jnp.asarray(x)[None]
    for layer in self.layers:
        x = x @ layer.weight.T + layer.bias[None]
    return jnp.asarray(x[0])


def branching(self, x):
    return plain(self, x) if float(self.scale) == 0 else relu(self, x)


SAME = {
    "plain": lambda: net(plain),
    "rewritten": lambda: net(rewritten),
    "rewritten in bfloat16": lambda: half(net(rewritten)),
    "weights that are not finite": lambda: jax.tree.map(
        lambda leaf: leaf * jnp.nan, net(rewritten)
    ),
    "sequential": lambda: eqx.nn.Sequential(
        [SirenDense.init(2, 4, key=KEY), SirenDense.init(4, 1, key=KEY, regime="last")]
    ),
    "a deep SIREN": lambda: SIREN.init(2, 4, 1, depth=5, key=KEY),
    "a SIREN in bfloat16": lambda: half(SIREN.init(2, 8, 1, depth=5, key=KEY)),
    "no bias": lambda: eqx.nn.MLP(2, 1, 4, 3, jnp.sin, use_bias=False, key=KEY),
}


@pytest.mark.parametrize("name", SAME)
def test_a_network_that_is_its_layers_is_taken_however_it_is_made(name):
    for way in ("vmap", "eval_shape"):
        CONSTRUCTORS[way](SAME[name])
    inner = SAME[name]()
    expected = np.asarray(jax.vmap(inner)(X), np.float32)
    field = np.asarray(conditioned(inner)(X, jnp.ones(3)), np.float32)
    tolerance = 0.1 if "bfloat16" in name else 1e-4
    np.testing.assert_allclose(field, expected, rtol=tolerance, atol=tolerance)


def test_a_network_may_branch_on_its_parameters():
    conditioned(net(branching))
    with pytest.raises(ValueError, match="another function"):
        conditioned(net(branching, scale=1.0))


def test_an_activation_may_hold_a_traced_value():
    def value(slope):
        mlp = eqx.nn.MLP(2, 1, 4, 2, lambda x: jnp.sin(slope * x), key=KEY)
        return conditioned(mlp)(X[0], jnp.ones(3)), mlp(X[0])

    got, expected = jax.jit(value)(2.0)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_network_that_cannot_be_called_with_a_point_says_why():
    def dropout(self, x):
        return plain(self, eqx.nn.Dropout(0.5)(x))

    def two(self, x):
        return plain(self, x), x

    with pytest.raises(
        ValueError, match=r"own call.*Dropout requires a key.*inference"
    ):
        conditioned(net(dropout))
    with pytest.raises(ValueError, match=r"returns 2 arrays"):
        conditioned(net(two))
    wide = eqx.tree_at(lambda n: n.layers, net(encoded), linears(4, 4, 1))
    with pytest.raises(ValueError, match=r"own call.*shape \(4,\)|another function"):
        conditioned(wide)


def test_the_comparison_reads_no_parameter():
    with handlers.seed(rng_seed=0), handlers.trace() as trace, px.bayesianize():
        field = conditioned(SIREN.init(2, 4, 1, depth=3, key=KEY))
        assert list(trace) == []
        field(X, jnp.ones(3))
    assert {name.split(".")[1] for name in trace} == {"conditioners"}
