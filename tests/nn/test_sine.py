"""The fast sine and cosine against NumPy's in float64, and what they leave to XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyrox_ppl.nn._sine import cos, sin

PAIRS = [(sin, np.sin, jnp.sin), (cos, np.cos, jnp.cos)]
both = pytest.mark.parametrize(("ours", "numpys", "jaxs"), PAIRS, ids=["sin", "cos"])


def draws(largest, size=200_000):
    rng = np.random.default_rng(0)
    return rng.uniform(-largest, largest, size).astype(np.float32)


@both
@pytest.mark.parametrize("largest", [1e-3, 1.0, 30.0, 300.0, 1e4])
def test_the_error_is_at_most_1_6e_7(ours, numpys, jaxs, largest):
    x = draws(largest)
    # As users compile it: without fused multiply-adds the last bit may differ.
    optimised = jax.jit(ours, compiler_options={"xla_backend_optimization_level": 3})
    error = np.abs(np.asarray(optimised(x), np.float64) - numpys(np.float64(x)))
    assert error.max() <= 1.6e-7


@both
def test_it_is_right_next_to_its_zeros_and_extrema(ours, numpys, jaxs):
    near = np.float32(np.pi / 2) * np.arange(-400, 400, dtype=np.float32)
    x = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), -0.0 * near])
    error = np.abs(np.asarray(ours(jnp.asarray(x)), np.float64) - numpys(np.float64(x)))
    assert error.max() <= 1.6e-7


@both
@pytest.mark.parametrize("large", [1.1e4, 1e6, 1e30, np.inf, np.nan])
def test_larger_arguments_are_left_to_xla(ours, numpys, jaxs, large):
    x = jnp.asarray([0.3, -2.0, large], jnp.float32)
    np.testing.assert_array_equal(jax.jit(ours)(x), jax.jit(jaxs)(x))


@both
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float16, jnp.bfloat16])
def test_other_dtypes_are_left_to_xla(ours, numpys, jaxs, dtype):
    with jax.enable_x64(True):
        x = jnp.linspace(-5.0, 5.0, 64, dtype=dtype)
        assert ours(x).dtype == dtype
        np.testing.assert_array_equal(ours(x), jaxs(x))
        assert str(jax.make_jaxpr(ours)(x)) == str(jax.make_jaxpr(jaxs)(x))


@both
def test_other_back_ends_have_xlas(ours, numpys, jaxs):
    traced = jax.jit(ours).trace(jnp.ones(3))
    name = {"sin": "sine", "cos": "cosine"}[jaxs.__name__]
    elsewhere = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert f"stablehlo.{name}" in elsewhere
    assert "case" not in elsewhere
    assert "round_nearest_even" in traced.lower(lowering_platforms=("cpu",)).as_text()


@both
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 5)])
def test_any_shape_is_kept(ours, numpys, jaxs, shape):
    x = jnp.full(shape, 0.7)
    np.testing.assert_allclose(ours(x), np.full(shape, numpys(0.7)), rtol=1e-6)


@both
@pytest.mark.parametrize("modes", ["f", "r", "ff", "rr", "fr", "rf", "frfr"])
def test_derivatives_of_any_order_and_mode(ours, numpys, jaxs, modes):
    transform = {"f": jax.jacfwd, "r": jax.jacrev}
    function = ours
    for mode in modes:
        function = transform[mode](function)
    derivative = jax.jit(jax.vmap(function))(draws(50.0, 64))
    # Each derivative moves the phase on by a quarter.
    expected = numpys(np.float64(draws(50.0, 64)) + len(modes) * np.pi / 2)
    np.testing.assert_allclose(derivative, expected, atol=2e-7)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="others have XLA's")
@both
def test_under_vmap_the_slow_branch_does_not_run_along(ours, numpys, jaxs):
    x = draws(5.0, 64).reshape(8, 8)
    batched = jax.vmap(jax.vmap(ours))
    np.testing.assert_array_equal(batched(x), ours(jnp.asarray(x)))
    # A conditional that vmap had turned into a select would be none.
    assert "conditional" in jax.jit(batched).lower(x).compile().as_text()


def test_it_runs_inside_scan_and_cond_and_checkpoint():
    def step(carry, x):
        value = jax.checkpoint(lambda x: jax.lax.cond(x > 0, sin, cos, x))(x)
        return carry + value, value

    x = draws(5.0, 32)
    total, values = jax.lax.scan(step, jnp.float32(0.0), x)
    expected = np.where(x > 0, np.sin(x), np.cos(x))
    np.testing.assert_allclose(values, expected, atol=1e-6)
    slope = jax.grad(lambda x: jax.lax.scan(step, jnp.float32(0.0), x)[0])(x)
    np.testing.assert_allclose(slope, np.where(x > 0, np.cos(x), -np.sin(x)), atol=1e-6)
    np.testing.assert_allclose(total, expected.sum(), atol=1e-5)


@both
@pytest.mark.parametrize("transform", ["call", "jit", "vmap", "grad"])
def test_the_search_for_nans_names_one_and_lets_the_rest_pass(
    ours, numpys, jaxs, transform
):
    function = {
        "call": ours,
        "jit": jax.jit(ours),
        "vmap": jax.vmap(ours),
        "grad": jax.grad(lambda x: ours(x).sum()),
    }[transform]
    fine = jnp.asarray([0.3, 2e4], jnp.float32)  # the large one is XLA's
    with jax.debug_nans(True):
        assert np.all(np.isfinite(function(fine)))
        with pytest.raises(FloatingPointError):
            function(jnp.asarray([0.3, jnp.inf], jnp.float32))


@both
def test_it_runs_where_jit_is_disabled(ours, numpys, jaxs):
    with jax.disable_jit():
        value = ours(jnp.float32(0.7))
    np.testing.assert_allclose(value, numpys(0.7), rtol=1e-6)
