"""MCLMC against closed forms, and what it says of its own steps."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from blackjax.mcmc import mclmc
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC

from pyrox_ppl.infer import MCLMC, CompiledMCMC, init_params_from_members

pytestmark = pytest.mark.rank_promotion
KEY = jax.random.key(1)
ALPHA = jnp.array([2.0, 3.0, 4.0])
COV = jnp.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.3], [0.0, 0.3, 4.0]])
EXACT = {"energy_variance": (0.05, 1e-4)}


def targets():
    """A Gaussian, a correlated one, and constrained ones: all moments are known."""
    numpyro.sample("alone", dist.Normal(jnp.array([3.0, -1.0]), 0.5).to_event(1))
    numpyro.sample("correlated", dist.MultivariateNormal(jnp.ones(3), COV))
    numpyro.sample("scale", dist.HalfNormal(2.0))
    numpyro.sample("simplex", dist.Dirichlet(ALPHA))


# Means and variances of every site.
SIMPLEX = np.asarray(ALPHA) / 9.0
MOMENTS = {
    "alone": ([3.0, -1.0], [0.25, 0.25]),
    "correlated": (np.ones(3), np.diag(COV)),
    "scale": (2 * np.sqrt(2 / np.pi), 4 * (1 - 2 / np.pi)),
    "simplex": (SIMPLEX, SIMPLEX * (1 - SIMPLEX) / 10.0),
}


def run(model, *args, cls=CompiledMCMC, kernel=None, chains=2, **settings):
    kernel = MCLMC(model, **EXACT) if kernel is None else kernel
    given = {"num_warmup": 2000, "num_samples": 12_000, "thinning": 10} | settings
    init_params = given.pop("init_params", None)
    mcmc = cls(
        kernel,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
        **given,
    )
    extra = ("energy_variance", "num_diverging", "potential_energy")
    mcmc.run(KEY, *args, extra_fields=extra, init_params=init_params)
    return mcmc


def small():
    """A Gaussian and a positive site: quick to compile."""
    numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("scale", dist.HalfNormal(2.0))


@pytest.fixture(scope="module")
def sampled():
    with jax.numpy_rank_promotion("allow"):
        return run(targets)


def check_moments(draws, moments, bias=0.0, sigmas=4.5):
    for name, (mean, variance) in moments.items():
        values = np.asarray(draws[name], np.float64)
        mean, variance = np.asarray(mean), np.asarray(variance)
        ess = effective_sample_size(values)
        assert np.all(ess > 100), (name, ess)
        spread = np.sqrt(variance)
        error = sigmas * spread / np.sqrt(ess) + bias * spread
        assert np.all(np.abs(values.mean((0, 1)) - mean) < error), name
        squares = (values - mean) ** 2
        ess = effective_sample_size(squares)
        error = sigmas * squares.std((0, 1)) / np.sqrt(ess) + 2 * bias * variance
        assert np.all(np.abs(squares.mean((0, 1)) - variance) < error), name


def test_moments_are_those_of_the_closed_forms(sampled):
    check_moments(sampled.get_samples(group_by_chain=True), MOMENTS, bias=0.02)


def test_the_covariance_is_found(sampled):
    draws = np.asarray(sampled.get_samples()["correlated"])
    np.testing.assert_allclose(np.corrcoef(draws.T)[0, 1], 0.9, atol=0.04)


def test_the_warm_up_reaches_the_energy_variance_and_finds_a_length(sampled):
    fields = sampled.get_extra_fields(group_by_chain=True)
    # Few large errors make the mean; most steps are below what was aimed at.
    size = sampled.last_state.z.shape[-1]
    assert size == 8
    typical = np.median(np.asarray(fields["energy_error"]) ** 2, axis=1) / size
    assert np.all(typical < 1e-4)
    assert np.all(typical > 1e-8)
    steps, lengths = (
        np.asarray(fields[f"adapt_state.{name}"]) for name in ("step_size", "L")
    )
    for adapted in (steps, lengths):
        np.testing.assert_array_equal(adapted.min(1), adapted.max(1))
    # A spread of about the posterior's: sqrt(sum of variances) is 3.1.
    assert np.all((lengths > 0.5) & (lengths < 30.0))
    assert np.all(steps[:, 0] < lengths[:, 0])
    assert not np.any(fields["diverging"])
    assert set(np.unique(fields["num_steps"])) == {2}


@pytest.mark.slow
def test_the_bias_shrinks_with_the_step_size():
    """A Gaussian's variance: too small a share of it means the steps are too long."""

    def gaussian():
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([20]).to_event(1))

    errors = []
    for step in (6.0, 2.0):
        kernel = MCLMC(gaussian, step_size=step, L=5.0)
        mcmc = run(gaussian, kernel=kernel, num_warmup=200, num_samples=10_000)
        squares = np.asarray(mcmc.get_samples(group_by_chain=True)["x"]) ** 2
        errors.append(abs(float(squares.mean()) - 1.0))
        variance = np.asarray(mcmc.get_extra_fields()["energy_variance"])[-1]
        errors.append(float(variance))
    large, its_variance, small, other_variance = errors
    assert its_variance > 100 * other_variance
    assert small < 0.03
    assert large > 2 * small


def test_scales_are_found_and_used():
    def scaled():
        sd = jnp.array([0.01, 1.0, 100.0])
        numpyro.sample("x", dist.Normal(jnp.zeros(3), sd).to_event(1))

    kernel = MCLMC(scaled, diagonal_preconditioning=True, energy_variance=(0.1, 1e-3))
    mcmc = run(scaled, kernel=kernel, num_warmup=6000, num_samples=6000)
    scales = np.asarray(mcmc.last_state.adapt_state.inverse_mass_matrix)
    assert scales.shape == (2, 3)
    assert np.all(scales[:, 2] / scales[:, 0] > 100.0)


@pytest.mark.slow
def test_a_funnel():
    """Neal's funnel of a mild neck: the moments of its log scale."""

    def funnel():
        v = numpyro.sample("v", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)).expand([4]).to_event(1))

    kernel = MCLMC(funnel, energy_variance=(1e-3, 1e-5))
    mcmc = run(funnel, kernel=kernel, num_warmup=10_000, num_samples=200_000)
    moments = {"v": (0.0, 1.0), "x": (np.zeros(4), np.exp(0.5) * np.ones(4))}
    check_moments(mcmc.get_samples(group_by_chain=True), moments, bias=0.05)


def test_steps_are_those_of_blackjax():
    kernel = MCLMC(small, step_size=0.5, L=2.0)
    state = kernel.init(KEY, 0, None, (), {})
    log_density = kernel._log_density((), {})

    @jax.jit
    def both(state):
        before = mclmc.IntegratorState(
            state.z, state.r, -state.potential_energy, -state.z_grad
        )
        key = jax.random.split(state.rng_key)[1]
        step = mclmc.build_kernel()
        return kernel.sample(state, (), {}), *step(
            key, before, log_density, 1.0, 2.0, 0.5
        )

    for _ in range(5):
        state, expected, info = both(state)
        np.testing.assert_allclose(state.z, expected.position, rtol=1e-5)
        np.testing.assert_allclose(state.r, expected.momentum, rtol=1e-4)
        np.testing.assert_allclose(-state.z_grad, expected.logdensity_grad, rtol=1e-5)
        np.testing.assert_allclose(state.energy_error, info.energy_change, atol=1e-5)
        assert not state.diverging


def test_a_step_into_nothing_is_rejected_and_counted():
    """A density that is NaN beyond a wall: the chain stays where it is, and says so."""

    def walled():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        numpyro.factor("wall", jnp.where(x[0] > 0.5, jnp.nan, 0.0))

    start = {"x": jnp.zeros((2, 3))}
    kernel = MCLMC(walled, step_size=0.5, L=2.0)
    mcmc = run(
        walled,
        kernel=kernel,
        num_warmup=0,
        num_samples=400,
        thinning=1,
        init_params=start,
    )
    fields = mcmc.get_extra_fields(group_by_chain=True)
    diverging = np.asarray(fields["diverging"])
    assert 5 < diverging.sum() < 600
    np.testing.assert_array_equal(fields["num_diverging"][:, -1], diverging.sum(1))
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    assert x[..., 0].max() <= 0.5
    stayed = (x[:, 1:] == x[:, :-1]).all(-1)
    np.testing.assert_array_equal(stayed, diverging[:, 1:])
    energy = np.asarray(fields["potential_energy"])
    expected = 0.5 * (x**2).sum(-1) + 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(energy, expected, rtol=1e-4)


@pytest.mark.slow
def test_thinning_keeps_every_kth_of_the_same_chain():
    kernel = MCLMC(small, step_size=0.5, L=2.0)
    every, third = (
        run(small, kernel=kernel, num_warmup=30, num_samples=30, thinning=k)
        for k in (1, 3)
    )
    for name, draws in every.get_samples(group_by_chain=True).items():
        kept = third.get_samples(group_by_chain=True)[name]
        np.testing.assert_allclose(kept, draws[:, 2::3], rtol=1e-4, atol=1e-5)


def test_chains_start_at_members():
    members = {"x": jnp.array([[3.0, 0.0], [2.0, -1.0]]), "scale": jnp.array([0.5, 2])}
    start = init_params_from_members(small, members)
    kernel = MCLMC(small, step_size=1e-5, L=1.0)
    settings = {"num_warmup": 0, "num_samples": 1, "thinning": 1, "kernel": kernel}
    mcmc = run(small, init_params=start, **settings)
    for name, values in mcmc.get_samples(group_by_chain=True).items():
        np.testing.assert_allclose(values[:, 0], members[name], atol=1e-3)
    for cls in (MCMC, CompiledMCMC):
        with pytest.raises(ValueError, match=r"num_chains|3 chains"):
            run(small, cls=cls, chains=3, init_params=start)
        with pytest.raises(ValueError, match="leading axis"):
            run(small, cls=cls, chains=1, init_params=start)


def test_members_that_fit_no_model_are_an_error():
    members = {"alone": jnp.zeros((2, 2)), "scale": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"missing: \['correlated', 'simplex'\]"):
        init_params_from_members(targets, members)
    members |= {"correlated": jnp.ones((2, 3)), "simplex": jnp.ones((3, 3)) / 3}
    with pytest.raises(ValueError, match="same number of members"):
        init_params_from_members(targets, members)
    members["simplex"] = jnp.ones((2, 4)) / 4
    with pytest.raises(ValueError, match=r"need \(member, \*site\)"):
        init_params_from_members(targets, members)
    members |= {"simplex": jnp.ones((2, 3)) / 3, "scale": jnp.array([0.0, 1.0])}
    with pytest.raises(ValueError, match="edge of their support"):
        init_params_from_members(targets, members)
    with pytest.raises(ValueError, match=r"not sites of the model: \['wrong'\]"):
        init_params_from_members(targets, members | {"wrong": jnp.ones(2)})


def discrete():
    numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("k", dist.Poisson(2.0))


def one_value():
    numpyro.sample("x", dist.Normal(0.0, 1.0))


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "cls", [pytest.param(MCMC, marks=pytest.mark.slow), CompiledMCMC]
)
def test_bad_input_says_what_to_do(cls):
    with pytest.raises(ValueError, match="two or more unconstrained values"):
        run(one_value, cls=cls)
    with pytest.raises(RuntimeError, match="enumerate support"):
        run(discrete, cls=cls)
    kernel = MCLMC(small, step_size=1e4)
    with pytest.raises(ValueError, match=r"diverges within .* chains \[0, 1\]"):
        run(small, cls=cls, kernel=kernel)
    nan = {"x": jnp.full((2, 2), jnp.nan), "scale": jnp.zeros(2)}
    with pytest.raises(RuntimeError, match="not finite at the start of chains"):
        run(small, cls=cls, init_params=nan)


@pytest.mark.wrong_types
def test_bad_settings_say_what_was_expected():
    with pytest.raises(TypeError, match="takes a NumPyro model"):
        MCLMC(3)
    with pytest.raises(ValueError, match="step_size must be a positive number"):
        MCLMC(targets, step_size=0.0)
    with pytest.raises(ValueError, match="L must be a positive number"):
        MCLMC(targets, L=-1.0)
    with pytest.raises(ValueError, match="two positive numbers"):
        MCLMC(targets, energy_variance=(0.1,))
    with pytest.raises(RuntimeError, match="initialised"):
        MCLMC(targets).postprocess_fn((), {})
