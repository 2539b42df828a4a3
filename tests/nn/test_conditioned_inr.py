"""ConditionedINR around the networks that a user may bring, and those it refuses."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pyrox_ppl as px
from pyrox_ppl.nn import (
    SIREN,
    AffineModulation,
    ConcatConditioner,
    ConditionedINR,
    HyperLinear,
)

KEY = jax.random.key(0)
MODES = ["feature", "preactivation", "input"]
rng = np.random.default_rng(0)
X = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
Z = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)


def perturbed(module):
    """The module with noise on every array, so that no two entries agree."""
    noise = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: (
            x + noise.normal(0.0, 0.3, x.shape).astype(np.float32)
            if eqx.is_inexact_array(x)
            else x
        ),
        module,
    )


def conditioned(inner, conditioner_cls=AffineModulation, **kwargs):
    return ConditionedINR.init(
        inner, conditioner_cls=conditioner_cls, cond_dim=3, key=KEY, **kwargs
    )


class PReLU(eqx.Module):
    """An activation with a parameter, which must be a scalar when it is called."""

    slope: jax.Array

    def __call__(self, x):
        return jax.lax.select(x > 0, x, jnp.broadcast_to(self.slope, x.shape) * x)


class Own(eqx.Module):
    """A user's network: layers of several widths, one activation for all of them."""

    layers: list
    activation: PReLU

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def own():
    widths = [2, 4, 5, 3]
    layers = [eqx.nn.Linear(*pair, key=KEY) for pair in itertools.pairwise(widths)]
    return Own(layers, PReLU(jnp.float32(0.3)))


def mlp(out=3, **kwargs):
    return perturbed(eqx.nn.MLP(2, out, 4, 2, key=KEY, **kwargs))


PRELU = PReLU(jnp.float32(0.3))
INNERS = {
    "MLP, a slope per neuron": mlp(activation=PRELU),
    "MLP, a slope per output": mlp(final_activation=PRELU),
    "MLP, both": mlp(activation=PRELU, final_activation=PRELU),
    "MLP, scalar output": mlp("scalar", final_activation=jnp.tanh),
    "MLP, scalar output with a slope": mlp("scalar", final_activation=PRELU),
    "MLP, no biases": mlp(use_bias=False, use_final_bias=False),
    "own, one slope": own(),
    "own, a slope per point": eqx.tree_at(
        lambda net: (net.layers, net.activation.slope),
        own(),
        ([eqx.nn.Linear(2, 4, key=KEY), eqx.nn.Linear(4, 3, key=KEY)], jnp.arange(4.0)),
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", INNERS)
def test_a_field_starts_as_its_network_with_all_its_activations(name, mode):
    inner = INNERS[name]
    field = conditioned(inner, mode=mode, in_features=2)
    expected = jax.vmap(inner)(X)
    calls = [(X[None], Z[None]), (X[0], Z[0])]
    grid, point = jax.jit(lambda: [field(*arguments) for arguments in calls])()
    np.testing.assert_allclose(grid, expected[None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(point, expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_network_of_a_scalar_takes_points_of_one_coordinate(mode):
    inner = perturbed(eqx.nn.MLP("scalar", "scalar", 4, 2, key=KEY))
    field = conditioned(inner, mode=mode)
    assert field.in_features == 1
    np.testing.assert_allclose(field(X[:, :1], Z), jax.vmap(inner)(X[:, 0]), rtol=1e-4)
    np.testing.assert_allclose(field(X[0, :1], Z[0]), inner(X[0, 0]), rtol=1e-4)


@pytest.mark.parametrize("gamma", ["one_plus_tanh", "exp", "softplus", "identity"])
@pytest.mark.parametrize("mode", MODES)
def test_a_field_starts_as_its_network_for_every_gamma_and_every_context(gamma, mode):
    inner = SIREN.init(2, 5, 3, depth=3, key=KEY)
    film = {"conditioner_cls": AffineModulation, "gamma_activation": gamma}
    field = ConditionedINR.init(inner, **film, cond_dim=3, key=KEY, mode=mode)
    for scale in (0.0, 1.0, 1e4):
        # Rounding of the scale 1 of softplus is what a SIREN's sines amplify.
        np.testing.assert_allclose(field(X, scale * Z), inner(X), rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    "conditioner_cls", [AffineModulation, ConcatConditioner, HyperLinear]
)
@pytest.mark.parametrize("mode", ["feature", "preactivation"])
def test_a_conditioner_stands_on_its_side_of_its_own_layers_activation(
    conditioner_cls, mode
):
    inner = mlp(activation=PRELU)
    field = perturbed(conditioned(inner, conditioner_cls, mode=mode))
    inner, slopes = field.inner, np.asarray(field.inner.activation.slope)
    assert slopes.shape == (2, 4)
    for x, z in zip(X, Z, strict=True):
        h = np.asarray(x)
        for i in range(2):
            weight, bias = inner.layers[i].weight, inner.layers[i].bias
            h = np.asarray(weight) @ h + np.asarray(bias)
            if mode == "preactivation":
                h = np.asarray(field.conditioners[i](h, z))
            h = np.where(h > 0, h, slopes[i] * h)
            if mode == "feature":
                h = np.asarray(field.conditioners[i](h, z))
        expected = np.asarray(inner.layers[2].weight) @ h + inner.layers[2].bias
        np.testing.assert_allclose(field(x, z), expected, rtol=1e-4, atol=1e-5)


def test_each_conditioner_is_as_wide_as_its_layer():
    field = conditioned(own(), HyperLinear)
    widths = [(c.target_in, c.target_out) for c in field.conditioners]
    assert widths == [(4, 4), (5, 5)]
    assert [c.num_features for c in conditioned(own()).conditioners] == [4, 5]
    assert field(X, Z).shape == (6, 3)


def test_further_arguments_reach_the_conditioners():
    field = conditioned(own(), gamma_activation="exp")
    assert [c.gamma_activation for c in field.conditioners] == ["exp", "exp"]
    with pytest.raises(TypeError, match="gamma"):
        conditioned(own(), ConcatConditioner, gamma_activation="exp")


@pytest.mark.parametrize("depth", [2, 3])
def test_layers_that_are_stacked_into_one_are_refused_not_misread(depth):
    inner = eqx.nn.MLP(2, 3, 4, depth, scan=True, key=KEY)
    for mode in ("feature", "preactivation"):
        with pytest.raises(ValueError, match="mode='input'"):
            conditioned(inner, mode=mode)(X, Z)
    field = conditioned(inner, mode="input")
    np.testing.assert_allclose(field(X, Z), jax.vmap(inner)(X), rtol=1e-5, atol=1e-6)


class Shifted(px.nn.AbstractConditioner):
    """A user's own conditioner, but for `init`."""

    scale: jax.Array
    num_features: int = eqx.field(static=True)
    cond_dim: int = eqx.field(static=True)

    def condition(self, h, z):
        return h + self.scale * jnp.sum(z, -1, keepdims=True)


class Shift(px.nn.AbstractConditioner):
    """A user's own conditioner."""

    scale: jax.Array
    num_features: int = eqx.field(static=True)
    cond_dim: int = eqx.field(static=True)

    @classmethod
    def init(cls, num_features, cond_dim, *, key, scale=1.0):
        return cls(jnp.float32(scale), num_features, cond_dim)

    def condition(self, h, z):
        return h + self.scale * jnp.sum(z, -1, keepdims=True)


def test_a_conditioner_of_the_users_own_takes_part():
    field = conditioned(own(), Shift, mode="input", scale=2.0)
    moved = X + 2.0 * Z.sum(-1, keepdims=True)
    expected = jax.vmap(own())(moved)
    np.testing.assert_allclose(field(X, Z), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"conditioner_cls": eqx.nn.Linear}, "conditioner_cls must be a subclass"),
        ({"conditioner_cls": Shift.init}, "conditioner_cls must be a subclass"),
        ({"conditioner_cls": "FiLM"}, "conditioner_cls must be a subclass.* 'FiLM'"),
        ({"conditioner_cls": None}, "conditioner_cls must be a subclass.* None"),
        ({"conditioner_cls": Shifted}, "Shifted needs a classmethod `init`"),
        ({"inner": None}, "inner must be a callable network, got None"),
        ({"inner": jnp.ones(3)}, "inner must be a callable network"),
    ],
)
def test_what_is_no_conditioner_or_no_network_is_a_type_error(wrong, message):
    arguments = {"inner": own(), "conditioner_cls": Shift, "cond_dim": 3, "key": KEY}
    with pytest.raises(TypeError, match=message):
        ConditionedINR.init(**(arguments | wrong))


@pytest.mark.wrong_types
@pytest.mark.parametrize("mode", ["features", "", "INPUT", None, 1])
def test_an_unknown_mode_is_named_with_the_three(mode):
    message = "mode must be 'feature', 'preactivation' or 'input', got"
    with pytest.raises(ValueError, match=message):
        conditioned(own(), mode=mode)


def test_input_mode_takes_the_width_that_a_callable_tells():
    def plane(point):
        return point.sum(keepdims=True)

    with pytest.raises(ValueError, match=r"not know the input width.*in_features"):
        conditioned(plane, mode="input")
    plane.in_features = 2
    field = perturbed(conditioned(plane, mode="input"))
    assert field.conditioners[0].num_features == 2
    expected = field.conditioners[0](X, Z).sum(-1, keepdims=True)
    np.testing.assert_allclose(field(X, Z), expected, rtol=1e-6)


def test_feature_mode_needs_layers_that_tell_their_widths():
    one = eqx.nn.MLP(2, 3, 4, 0, key=KEY)
    with pytest.raises(ValueError, match=r"two or more `layers`(.|\n)*mode='input'"):
        conditioned(one)
    mixed = eqx.nn.Sequential(
        [
            eqx.nn.Linear(2, 4, key=KEY),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Linear(4, 1, key=KEY),
        ]
    )
    with pytest.raises(ValueError, match=r"width of Lambda.*`out_features`"):
        conditioned(mixed)


def test_a_siren_inside_is_left_as_it_came():
    inner = SIREN.init(2, 4, 1, depth=3, key=KEY)
    assert conditioned(inner).inner is inner
