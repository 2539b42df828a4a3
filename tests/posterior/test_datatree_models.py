"""to_datatree for other models and kernels, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import make_film
from numpyro.infer import HMC, MCMC, NUTS, BarkerMH, DiscreteHMCGibbs

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC

Y = np.tanh(np.linspace(-1.0, 1.0, 15)).reshape(5, 3).astype(np.float32)
Z = np.array([0.5, 1.0], np.float32)
FILM = make_film()
MARK = {"enumerate": "parallel"}


def run_kernel(kernel, *args, make=MCMC, extra_fields=(), **kwargs):
    mcmc = make(kernel, num_warmup=3, num_samples=3, progress_bar=False)
    mcmc.run(jax.random.key(0), *args, extra_fields=extra_fields, **kwargs)
    return mcmc


def run(model, *args, **kwargs):
    return run_kernel(NUTS(model), *args, make=CompiledMCMC, **kwargs)


def test_constants_in_containers_and_numbers_are_named_by_their_path():
    def nested(inputs, flag, name, offset=0.0, y=None):
        assert flag
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        mean = slope * inputs["x"][0] * inputs["power"] + offset
        numpyro.sample("y", dist.Normal(mean, 0.3).to_event(1), obs=y)

    args = ({"x": [Y[:, 0]], "power": 2}, True, "name")
    constants = px.to_datatree(run(nested, *args, y=Y[:, 1]), *args, y=Y[:, 1])
    assert set(constants.constant_data.data_vars) == {"inputs.x.0", "inputs.power"}
    assert constants.constant_data["inputs.power"].item() == 2


def test_a_random_key_among_the_arguments_is_kept_as_its_numbers():
    def model(key, y=None):
        noise = jax.random.normal(key)
        mean = numpyro.sample("mean", dist.Normal(noise, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.0).expand((3,)).to_event(1), obs=y)

    key = jax.random.key(7)
    draws = {"mean": np.zeros((1, 2))}
    tree = px.to_datatree(draws, key, y=Y[:3], model=model, batch_ndims=2)
    np.testing.assert_array_equal(tree.constant_data["key"], jax.random.key_data(key))


def test_an_input_equal_to_the_observations_is_still_a_constant():
    x = Y[:, 0]

    def remade(x, y=None):
        line(x, jnp.asarray(y))

    tree = px.to_datatree(run(line, x, y=x.copy()), x, y=x.copy())
    assert set(tree.constant_data.data_vars) == {"x"}
    y = Y[:, 1]
    tree = px.to_datatree(run(remade, x, y=y), x, y=y)
    assert set(tree.constant_data.data_vars) == {"x"}


def test_a_module_among_the_arguments_is_no_data():
    def of_module(film, y=None):
        with px.bayesianize():
            mean = film(Y, Z)
        numpyro.sample("y", dist.Normal(mean, 0.3).to_event(2), obs=y)

    kernel = NUTS(lambda y: of_module(FILM, y))
    mcmc = run_kernel(kernel, y=Y, make=CompiledMCMC)
    assert "constant_data" not in px.to_datatree(mcmc, y=Y).children


def line(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.Normal(slope * x, 0.3), obs=y)


@pytest.mark.parametrize("kernel", [HMC, NUTS, BarkerMH])
def test_one_chain_of_any_kernel_is_a_chain_too(kernel):
    x, y = Y[:, 0], Y[:, 1]
    tree = px.to_datatree(run_kernel(kernel(line), x, y=y), x, y=y)
    assert tree.posterior["slope"].shape == (1, 3)
    slope = tree.posterior["slope"].values[0]
    lp = -0.5 * slope**2 - 0.5 * (((y - slope[:, None] * x) / 0.3) ** 2).sum(-1)
    lp -= 0.5 * 6 * np.log(2 * np.pi) + 5 * np.log(0.3)
    np.testing.assert_allclose(tree.sample_stats["lp"][0], lp, rtol=1e-4)


def test_a_bfloat16_module_comes_out_as_float32():
    film = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), FILM)

    def half(y=None):
        with px.bayesianize(where="*.bias"):
            mean = film(Y, Z)
        numpyro.deterministic("mean", mean.astype(jnp.bfloat16))
        likelihood = dist.Normal(mean.astype(jnp.float32), 1.0)
        numpyro.sample("y", likelihood.to_event(2), obs=y)

    tree = px.to_datatree(run(half, y=Y), y=Y)
    assert {v.dtype for v in tree.posterior.data_vars.values()} == {np.dtype("float32")}
    assert "constant_data" not in tree.children


def test_an_enumerated_latent_is_no_variable_and_has_no_log_likelihood():
    def mixture(y=None):
        rate = numpyro.sample("rate", dist.Exponential(1.0))
        with numpyro.plate("row", 5):
            k = numpyro.sample("k", dist.Bernoulli(0.5), infer=MARK)
            numpyro.sample("y", dist.Normal(k * rate, 0.3), obs=y)

    y = Y[:, 0]
    with jax.numpy_rank_promotion("allow"):  # NumPyro's enumeration promotes ranks
        collected = run(mixture, y=y, extra_fields=("potential_energy",))
        plain = run(mixture, y=y)
        tree = px.to_datatree(collected, y=y)
        assert "lp" not in px.to_datatree(plain, y=y).sample_stats
    assert set(tree.posterior.data_vars) == {"rate"}
    assert np.isfinite(tree.sample_stats["lp"]).all()
    assert tree.posterior_predictive["y"].shape == (1, 3, 5)
    assert "log_likelihood" not in tree.children


def test_a_discrete_latent_that_was_drawn_has_a_log_likelihood():
    def mixture(y=None):
        rate = numpyro.sample("rate", dist.Exponential(1.0))
        with numpyro.plate("row", 5):
            k = numpyro.sample("k", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(k * rate, 0.3), obs=y)

    y = Y[:, 0]
    tree = px.to_datatree(run_kernel(DiscreteHMCGibbs(NUTS(mixture)), y=y), y=y)
    mean = tree.posterior["k"].values * tree.posterior["rate"].values[..., None]
    by_hand = -0.5 * ((y - mean) / 0.3) ** 2 - np.log(0.3 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(tree.log_likelihood["y"], by_hand, rtol=1e-4, atol=1e-5)
    assert "sample_stats" not in tree.children  # this kernel reports nothing


def test_an_mcmc_without_draws_or_model_is_refused():
    empty = MCMC(NUTS(line), num_warmup=1, num_samples=1)
    with pytest.raises(ValueError, match=r"call mcmc\.run"):
        px.to_datatree(empty, Y[:, 0])
    potential = MCMC(NUTS(potential_fn=lambda x: x**2), num_warmup=1, num_samples=1)
    with pytest.raises(ValueError, match="potential function"):
        px.to_datatree(potential)


def test_two_sites_that_differ_by_a_slash_are_refused():
    def clash():
        numpyro.sample("a/b", dist.Normal(0.0, 1.0))
        numpyro.sample("a.b", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="rename one"):
        px.to_datatree(run(clash))


def test_a_forgotten_discrete_observation_is_no_enumerated_latent():
    def coin(y=None):
        p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        numpyro.sample("y", dist.Bernoulli(p), obs=y)

    with pytest.raises(ValueError, match=r"\['y'\].*observations included"):
        px.to_datatree(run(coin, y=1))
