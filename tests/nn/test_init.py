"""What each module draws at construction, against the law it is said to draw from."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrox_ppl.nn import (
    SIREN,
    AffineModulation,
    ConcatConditioner,
    ConditionedINR,
    FiLM,
    HyperLinear,
    SirenDense,
)

WIDTH = 64


def is_uniform(draws, half_width):
    """Whether draws fill +-half_width evenly (a Kolmogorov-Smirnov distance)."""
    ordered = np.sort(np.ravel(draws)) / half_width
    steps = (np.arange(ordered.size) + 0.5) / ordered.size
    distance = np.abs(steps - (ordered + 1) / 2).max()
    return np.abs(ordered).max() <= 1 and distance < 1.95 / np.sqrt(ordered.size)


def test_film_is_another_name_of_affine_modulation():
    assert FiLM is AffineModulation


@pytest.mark.parametrize("mode", ["one_plus_tanh", "exp", "softplus", "identity"])
def test_affine_modulation_starts_at_fixed_values_whatever_the_key(mode):
    first, second = (
        AffineModulation.init(4, 3, key=jax.random.key(i), gamma_activation=mode)
        for i in range(2)
    )
    assert eqx.tree_equal(first, second)
    assert not np.any(first.generator.weight)
    raw = {"softplus": np.log(np.expm1(1.0)), "identity": 1.0}.get(mode, 0.0)
    np.testing.assert_allclose(first.generator.bias, [0.0] * 4 + [raw] * 4, rtol=1e-6)


@pytest.mark.wrong_types
@given(name=st.text(max_size=8) | st.none() | st.integers())
def test_an_unknown_gamma_activation_is_named_with_the_four(name):
    with pytest.raises(ValueError, match="gamma_activation must be one of") as error:
        AffineModulation.init(4, 3, key=jax.random.key(0), gamma_activation=name)
    assert repr(name) in str(error.value)
    for known in ("one_plus_tanh", "exp", "softplus", "identity"):
        assert known in str(error.value)


def test_the_concatenation_draws_what_equinox_draws(key):
    module = ConcatConditioner.init(4, 3, key=key)
    linear = eqx.nn.Linear(7, 4, key=key)
    assert eqx.tree_equal(module.generator, linear)


@pytest.mark.parametrize("cond_dim", [1, 9])
def test_hyper_linear_draws_uniforms_of_the_widths_it_names(cond_dim, key):
    module = HyperLinear.init(16, WIDTH, cond_dim, key=key, init_scale=0.5)
    assert is_uniform(module.generator.bias, 1 / 4)
    assert is_uniform(module.generator.weight, 0.5 / 4 / np.sqrt(cond_dim))


@pytest.mark.wrong_types
@pytest.mark.parametrize("bad", [0, -1.0, np.nan, np.inf, True, "1", None])
def test_a_scale_that_is_no_positive_number_is_named(bad, key):
    with pytest.raises(ValueError, match=r"^init_scale must be a positive number"):
        HyperLinear.init(2, 2, 2, key=key, init_scale=bad)
    for name in ("omega", "c"):
        with pytest.raises(ValueError, match=f"^{name} must be a positive number"):
            SirenDense.init(2, 2, key=key, **{name: bad})
    for name in ("first_omega", "hidden_omega", "c"):
        with pytest.raises(ValueError, match=f"^{name} must be a positive number"):
            SIREN.init(2, 2, 2, depth=2, key=key, **{name: bad})


@pytest.mark.parametrize(
    ("regime", "half_width"),
    [
        ("first", lambda n, omega, c: 1 / n),
        ("hidden", lambda n, omega, c: np.sqrt(c / n) / omega),
        ("last", lambda n, omega, c: np.sqrt(c / n) / omega),
    ],
)
@pytest.mark.parametrize(("omega", "c"), [(30.0, 6.0), (7.0, 6.0), (30.0, 1.5)])
def test_a_siren_layer_draws_the_uniforms_of_its_regime(
    regime, half_width, omega, c, key
):
    layer = SirenDense.init(9, WIDTH, key=key, regime=regime, omega=omega, c=c)
    assert is_uniform(layer.weight, half_width(9, omega, c))
    assert is_uniform(layer.bias, 1 / 3)


@pytest.mark.wrong_types
@given(name=st.text(max_size=8) | st.none() | st.integers())
def test_an_unknown_regime_is_named_with_the_three(name):
    with pytest.raises(ValueError, match="regime must be 'first', 'hidden' or 'last'"):
        SirenDense.init(2, 2, key=jax.random.key(0), regime=name)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_depth_of_a_siren_counts_the_readout(depth, key):
    net = SIREN.init(3, 4, 2, depth=depth, key=key, first_omega=11.0, hidden_omega=13.0)
    regimes = ["first", *["hidden"] * (depth - 2), "last"]
    assert [layer.regime for layer in net.layers] == regimes
    assert [layer.omega for layer in net.layers] == [11.0, *[13.0] * (depth - 1)]
    widths = [3, *[4] * (depth - 1), 2]
    shapes = [layer.weight.shape for layer in net.layers]
    assert shapes == list(zip(widths[1:], widths[:-1], strict=True))


def test_a_siren_of_one_layer_is_refused(key):
    with pytest.raises(ValueError, match=r"depth counts the readout.* got 1"):
        SIREN.init(3, 4, 2, depth=1, key=key)


def test_no_two_arrays_are_drawn_from_the_same_bits(key):
    inner_key, key = jax.random.split(key)
    net = SIREN.init(8, 8, 8, depth=4, key=inner_key)
    field = ConditionedINR.init(
        net, conditioner_cls=ConcatConditioner, cond_dim=8, key=key
    )
    drawn = [layer.weight[0] for layer in net.layers]
    drawn += [layer.bias for layer in net.layers]
    drawn += [c.generator.weight[0, :8] for c in field.conditioners]
    drawn += [c.generator.bias for c in field.conditioners]
    orders = {tuple(np.argsort(array).tolist()) for array in drawn}
    assert len(orders) == len(drawn) == 14


def test_the_readout_of_a_siren_has_no_sine(key):
    layer = SirenDense.init(3, 4, key=key, regime="last", omega=2.0)
    x = jnp.array([100.0, -200.0, 300.0])
    expected = np.asarray(layer.weight) @ np.asarray(x) + np.asarray(layer.bias)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5)
    assert np.abs(expected).max() > 1


def test_the_second_derivative_of_a_sine_layer_is_that_of_a_sine(key):
    layer = SirenDense.init(1, 4, key=key, omega=3.0)
    x = jnp.array([0.4])
    second = jax.jacfwd(jax.jacrev(layer))(x)[:, 0, 0]
    frequency = 3.0 * np.asarray(layer.weight)[:, 0]
    np.testing.assert_allclose(second, -(frequency**2) * layer(x), rtol=1e-4)
