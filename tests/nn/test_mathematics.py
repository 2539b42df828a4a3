"""Each module against its formula written by hand, in NumPy where it can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyrox_ppl.nn import SIREN, ConcatConditioner, ConditionedINR, FiLM, HyperLinear

KEY = jax.random.key(0)
MODES = ["one_plus_tanh", "exp", "softplus", "identity"]
rng = np.random.default_rng(0)
H = rng.normal(size=(7, 4)).astype(np.float32)
Z = (3 * rng.normal(size=(7, 3))).astype(np.float32)
X = rng.uniform(-1, 1, size=(7, 2)).astype(np.float32)


def perturbed(module):
    """The module with noise on every parameter, so that no term is idle."""
    leaves, treedef = jax.tree.flatten(module)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    noisy = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, noisy)


def weights(linear):
    return np.asarray(linear.weight), np.asarray(linear.bias)


GAMMAS = {
    "one_plus_tanh": lambda raw: 1 + np.tanh(raw),
    "exp": np.exp,
    "softplus": lambda raw: np.log1p(np.exp(raw)),
    "identity": lambda raw: raw,
}


@pytest.mark.parametrize("mode", MODES)
def test_affine_modulation_is_its_formula(mode):
    film = perturbed(FiLM.init(4, 3, key=KEY, gamma_activation=mode))
    weight, bias = weights(film.generator)
    beta, raw = np.split(Z @ weight.T + bias, 2, axis=-1)
    np.testing.assert_allclose(
        film(H, Z), GAMMAS[mode](raw) * H + beta, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_affine_modulation_is_the_identity_at_construction_for_every_z(mode, scale):
    film = FiLM.init(4, 3, key=KEY, gamma_activation=mode)
    np.testing.assert_allclose(film(H, scale * Z), H, rtol=3e-7)


def test_log_det_is_that_of_autodiff_and_only_of_exp():
    film = perturbed(FiLM.init(4, 3, key=KEY, gamma_activation="exp"))
    by_autodiff = [
        jnp.linalg.slogdet(jax.jacfwd(film)(h, z))[1]
        for h, z in zip(jnp.asarray(H), jnp.asarray(Z), strict=True)
    ]
    np.testing.assert_allclose(film.log_det(Z), by_autodiff, rtol=1e-4, atol=1e-5)
    assert film.log_det(Z[None, :2]).shape == (1, 2)
    for mode in MODES:
        if mode != "exp":
            with pytest.raises(NotImplementedError, match="exp"):
                FiLM.init(4, 3, key=KEY, gamma_activation=mode).log_det(Z)


def test_concatenation_is_a_linear_layer_of_both():
    module = perturbed(ConcatConditioner.init(4, 3, key=KEY))
    both = jax.vmap(module.generator)(np.concatenate([H, Z], axis=-1))
    np.testing.assert_allclose(module(H, Z), both, rtol=1e-4, atol=1e-5)


def test_hyper_linear_builds_the_weights_and_applies_them():
    module = perturbed(HyperLinear.init(4, 5, 3, key=KEY))
    weight, bias = weights(module.generator)
    for shared in (False, True):
        rows = []
        for h, z in zip(H, Z, strict=True):
            out = weight @ (Z[0] if shared else z) + bias
            rows.append(out[:20].reshape(5, 4) @ h + out[20:])
        ours = module(H, Z[0] if shared else Z)
        np.testing.assert_allclose(ours, rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cond_dim", [1, 4, 64])
def test_hyper_linear_varies_by_init_scale_around_an_ordinary_layer(cond_dim):
    module = HyperLinear.init(50, 40, cond_dim, key=KEY, init_scale=0.1)
    z = jax.random.normal(KEY, (200, cond_dim))
    varying = np.asarray(z @ module.generator.weight.T)
    fixed = np.asarray(module.generator.bias)
    assert fixed.std() == pytest.approx(1 / np.sqrt(3 * 50), rel=0.05)
    assert varying.std() / fixed.std() == pytest.approx(0.1, rel=0.15)


def test_a_siren_is_its_formula():
    net = SIREN.init(2, 8, 3, depth=4, first_omega=5.0, hidden_omega=7.0, key=KEY)
    h = X
    for i, layer in enumerate(net.layers):
        affine = h @ np.asarray(layer.weight).T + np.asarray(layer.bias)
        h = affine if i == 3 else np.sin((5.0 if i == 0 else 7.0) * affine)
    np.testing.assert_allclose(net(X), h, rtol=1e-3, atol=1e-5)


def test_a_siren_draws_the_three_regimes_of_theorem_1():
    net = SIREN.init(3, 256, 3, depth=8, key=KEY)
    first, *hidden, last = net.layers
    assert np.abs(first.weight).max() == pytest.approx(1 / 3, rel=0.01)
    limit = np.sqrt(6 / 256) / 30
    for layer in (*hidden, last):
        assert np.abs(layer.weight).max() == pytest.approx(limit, rel=0.01)
        assert layer.weight.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
        assert np.abs(layer.bias).max() == pytest.approx(1 / 16, rel=0.5)
    h = jax.random.uniform(jax.random.key(1), (2000, 3), minval=-1.0, maxval=1.0)
    for i, layer in enumerate(net.layers[:-1]):
        if i > 0:
            spread = float((30.0 * (h @ layer.weight.T)).std())
            assert spread == pytest.approx(1.0, rel=0.05)
        h = layer(h)


def test_input_mode_conditions_the_coordinates_of_any_callable():
    field = ConditionedINR.init(
        lambda point: point.sum(keepdims=True) ** 2,
        conditioner_cls=ConcatConditioner,
        cond_dim=3,
        key=KEY,
        mode="input",
        in_features=2,
    )
    moved = field.conditioners[0](X, Z)
    np.testing.assert_allclose(
        field(X, Z), moved.sum(-1, keepdims=True) ** 2, rtol=1e-5
    )
