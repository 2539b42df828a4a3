"""Where chains of the kernels start: what is refused, and what means something else."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

from pyrox_ppl.infer import MCLMC, SGLD, FlatNUTS, init_params_from_members

KEY = jax.random.key(4)


def small():
    numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("scale", dist.HalfNormal(2.0))


def start_of(kernel, init_params):
    return kernel.init(KEY, 0, init_params, (), {}).z


@pytest.mark.parametrize("kind", [MCLMC, FlatNUTS])
def test_a_vector_of_another_length_is_an_error(kind):
    """No density is of the values after the last site."""
    with pytest.raises(ValueError, match=r"shape \(4,\), but the vector .* \(3,\)"):
        start_of(kind(small), jnp.zeros(4))
    np.testing.assert_array_equal(start_of(kind(small), jnp.ones(3)), np.ones(3))


@pytest.mark.parametrize("kind", [MCLMC, FlatNUTS])
def test_whole_numbers_are_a_start(kind):
    by_site = {"x": np.array([1, 2]), "scale": 0}
    for start, expected in ((by_site, [0, 1, 2]), (np.array([3, 4, 5]), [3, 4, 5])):
        z = start_of(kind(small), start)
        assert z.dtype == jnp.float32
        np.testing.assert_array_equal(z, expected)


def bounded():
    numpyro.sample("simplex", dist.Dirichlet(jnp.ones(3)))
    numpyro.sample("corr", dist.LKJCholesky(2))


def test_members_outside_of_their_support_are_an_error():
    """Their inverse is finite, and leads to another point."""
    inside = {"simplex": np.full((2, 3), 1 / 3), "corr": np.tile(np.eye(2), (2, 1, 1))}
    start = init_params_from_members(bounded, inside)
    assert start["simplex"].shape == (2, 2)
    for name in inside:
        outside = inside | {name: 0.6 * inside[name]}
        with pytest.raises(ValueError, match=rf"\['{name}'\] lie outside"):
            init_params_from_members(bounded, outside)


def test_members_are_numbers_of_any_type_with_an_axis_of_their_own():
    members = {"x": [[1, 0], [0, 2]], "scale": [1, 2]}
    start = init_params_from_members(small, members)
    np.testing.assert_allclose(start["scale"], np.log([1, 2]), atol=1e-6)
    with pytest.raises(ValueError, match=r"'scale': \(\)}, and need \(member"):
        init_params_from_members(small, members | {"scale": 1.0})


def test_members_of_a_prior_without_draws():
    def improper():
        real = dist.constraints.real
        numpyro.sample("x", dist.ImproperUniform(real, (), (2,)))
        numpyro.sample("y", dist.Normal(0.0, 1.0))

    members = {"x": jnp.ones((3, 2)), "y": jnp.zeros(3)}
    start = init_params_from_members(improper, members)
    np.testing.assert_array_equal(start["x"], members["x"])


@pytest.mark.wrong_types
@pytest.mark.parametrize("value", ["auto", None, True, [1e-3] * 3, float("nan")])
def test_a_setting_that_is_no_positive_number_is_an_error(value):
    with pytest.raises(ValueError, match="positive step_size"):
        SGLD(small, value)
    with pytest.raises(ValueError, match="two positive numbers"):
        MCLMC(small, energy_variance=value)
    if value is not None:
        with pytest.raises(ValueError, match="L must be a positive number"):
            MCLMC(small, L=value)
        with pytest.raises(ValueError, match="step_size must be a positive number"):
            MCLMC(small, step_size=value)


def test_a_model_that_subsamples_is_sent_to_a_kernel_for_it():
    def rows(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with numpyro.plate("row", 4, subsample_size=2) as r:
            numpyro.sample("y", dist.Normal(mean.sum(), 1.0), obs=y[r])

    mcmc = MCMC(MCLMC(rows), num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(ValueError, match=r"plates \['row'\].*SGLD"):
        mcmc.run(KEY, jnp.zeros(4))
