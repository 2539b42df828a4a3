"""ConditionedINR before the activations: its formula, and where a layer is split."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, ConcatConditioner, ConditionedINR, FiLM, SirenDense

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 3)
rng = np.random.default_rng(0)
X = np.float32(rng.uniform(-1, 1, size=(4, 6, 2)))
Z = np.float32(rng.normal(size=(4, 6, 3)))


def conditioned(inner, conditioner_cls=FiLM, **kwargs):
    film = {"conditioner_cls": conditioner_cls, "cond_dim": 3, "key": KEY}
    return ConditionedINR.init(inner, mode="preactivation", **film, **kwargs)


def perturbed(module):
    """The module with noise on every array."""
    noise = np.random.default_rng(1)

    def move(leaf):
        if not eqx.is_array(leaf):
            return leaf
        return leaf + np.float32(noise.normal(0.0, 0.3, leaf.shape))

    return jax.tree.map(move, module)


def affine(layer, x):
    return x @ np.asarray(layer.weight, float).T + np.asarray(layer.bias, float)


@pytest.mark.parametrize("contexts", ["single", "group", "row"])
def test_film_sets_the_frequencies_and_phases_of_a_siren(contexts):
    inner = SIREN.init(2, 5, 3, depth=4, key=KEY, first_omega=4.0, hidden_omega=2.0)
    field = perturbed(conditioned(inner, gamma_activation="exp"))
    z = {"single": Z[0, 0], "group": Z[:, :1], "row": Z}[contexts]
    h = X
    for i, layer in enumerate(field.inner.layers[:-1]):
        # sin(gamma(z) * omega (W h + b) + beta(z))
        beta, raw = np.split(affine(field.conditioners[i].generator, z), 2, axis=-1)
        h = np.sin(np.exp(raw) * (2.0 if i else 4.0) * affine(layer, h) + beta)
    expected = affine(field.inner.layers[-1], h)
    np.testing.assert_allclose(field(X, z), expected, rtol=1e-3, atol=1e-4)


def test_log_det_is_that_of_the_map_of_the_pre_activations():
    field = perturbed(conditioned(SIREN.init(2, 5, 1, depth=2, key=KEY)))
    field = eqx.tree_at(
        lambda f: f.conditioners,
        field,
        tuple(perturbed(FiLM.init(5, 3, key=KEY, gamma_activation="exp")) for _ in "1"),
    )
    raw = affine(field.conditioners[0].generator, Z)[..., 5:]
    np.testing.assert_allclose(
        field.conditioners[0].log_det(Z), raw.sum(-1), rtol=1e-4, atol=1e-5
    )


class Gaussian(eqx.Module):
    """A user's layer that contains its activation and says so."""

    linear: eqx.nn.Linear
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)

    @classmethod
    def init(cls, n_in, n_out, key):
        return cls(eqx.nn.Linear(n_in, n_out, key=key), n_in, n_out)

    def preactivate(self, x):
        return self.linear(x)

    def activate(self, h):
        return jnp.exp(-(h**2))

    def __call__(self, x):
        return self.activate(self.preactivate(x))


class Closed(Gaussian):
    """One whose call is not the composition of its methods."""

    def __call__(self, x):
        return jnp.exp(-(self.linear(x) ** 2) / 2)


class Network(eqx.Module):
    """A user's network of such layers, with an activation after each or without."""

    layers: list
    activation: object = None

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = layer(x) if self.activation is None else self.activation(layer(x))
        return self.layers[-1](x)


def network(cls=Gaussian, activation=None):
    hidden = [cls.init(2, 4, KEYS[0]), cls.init(4, 5, KEYS[1])]
    return Network([*hidden, eqx.nn.Linear(5, 1, key=KEYS[2])], activation)


@pytest.mark.parametrize("activation", [None, jnp.tanh], ids=["none", "tanh"])
def test_a_layer_of_the_users_own_is_split_by_its_methods(activation):
    inner = network(activation=activation)
    field = conditioned(inner)
    start = jax.vmap(jax.vmap(inner))(X)
    np.testing.assert_allclose(field(X, 10.0 * Z), start, rtol=1e-5, atol=1e-6)
    field = perturbed(conditioned(inner, ConcatConditioner))
    h = X
    for layer, conditioner in zip(field.inner.layers, field.conditioners, strict=False):
        both = np.concatenate([affine(layer.linear, h), Z], -1)
        h = np.exp(-(affine(conditioner.generator, both) ** 2))
        h = h if activation is None else np.tanh(h)
    expected = affine(field.inner.layers[-1], h)
    np.testing.assert_allclose(field(X, Z), expected, rtol=1e-4, atol=1e-5)


def tanh_inside(n_in, n_out, key):
    """A layer with its activation that nobody can separate."""
    layers = [eqx.nn.Linear(n_in, n_out, key=key), eqx.nn.Lambda(jnp.tanh)]
    layer = eqx.nn.Sequential(layers)
    object.__setattr__(layer, "out_features", n_out)
    return layer


def test_a_layer_that_hides_its_activation_is_refused_with_what_to_do():
    hidden = [Gaussian.init(2, 4, KEYS[0]), tanh_inside(4, 5, KEYS[1])]
    inner = Network([*hidden, eqx.nn.Linear(5, 1, key=KEYS[2])])
    for what_to_do in ("`activation`", r"`preactivate\(x\)`", "mode='feature'"):
        message = rf"Network has no `activation`, .*layer 1, Sequential,.*{what_to_do}"
        with pytest.raises(ValueError, match=message):
            conditioned(inner)
    linear = eqx.nn.Sequential([eqx.nn.Linear(2, 2, key=key) for key in KEYS])
    with pytest.raises(ValueError, match="its layer 0, Linear, does not say"):
        conditioned(linear)


@pytest.mark.parametrize("way", ["plainly", "jit", "vmap"])
def test_methods_that_are_not_the_call_are_refused(way):
    def make(key):
        return conditioned(
            jax.tree.map(lambda a: a + jax.random.normal(key), network(Closed))
        )

    run = {"plainly": make, "jit": eqx.filter_jit(make), "vmap": eqx.filter_vmap(make)}
    with pytest.raises(ValueError, match=r"another function.*`preactivate`"):
        run[way](KEYS if way == "vmap" else KEY)


def test_a_layer_is_its_two_methods_in_every_regime():
    for regime in ("first", "hidden", "last"):
        layer = SirenDense.init(2, 4, key=KEY, regime=regime, omega=3.0)
        h = layer.preactivate(X)
        scale = 1.0 if regime == "last" else 3.0
        np.testing.assert_allclose(h, scale * affine(layer, X), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(layer.activate(h), layer(X))


def test_a_block_reads_the_layer_once_for_its_call_and_its_pre_activation():
    layer = SirenDense.init(2, 4, key=KEY)
    with handlers.seed(rng_seed=0), handlers.trace() as trace, px.bayesianize():
        h, y = layer.preactivate(X), layer(X)
    assert set(trace) == {"siren_dense.weight", "siren_dense.bias"}
    assert not np.allclose(h, layer.preactivate(X))
    np.testing.assert_allclose(jnp.sin(h), y, atol=1e-5)
    with pytest.raises(ValueError, match="in_features=2"):
        layer.preactivate(jnp.ones(3))
