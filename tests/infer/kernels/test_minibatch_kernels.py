"""SGLD and SGHMC: the bias that theory gives, and minibatches of the model's plate."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC

from pyrox_ppl.infer import SGHMC, SGLD, CompiledMCMC

pytestmark = pytest.mark.rank_promotion
KEY = jax.random.key(2)
N, B = 23, 5
Y = jnp.asarray(1.5 + np.sin(7.0 * np.arange(N)), jnp.float32)
# Posterior precision and mean of the mean, under a standard normal prior.
PRECISION, MEAN = 1.0 + N, float(Y.sum()) / (1.0 + N)


def model(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("row", N, subsample_size=B) as rows:
        numpyro.deterministic("residual", y[rows] - mean[0])
        numpyro.sample("y", dist.Normal(mean[None], 1.0).to_event(1), obs=y[rows, None])
    numpyro.deterministic("twice", 2.0 * mean)


def make(kernel, cls=CompiledMCMC, **settings):
    given = {"num_warmup": 500, "num_samples": 10_000, "num_chains": 2} | settings
    return cls(kernel, chain_method="vectorized", progress_bar=False, **given)


def run(kernel, *args, init_params=None, **settings):
    mcmc = make(kernel, **settings)
    mcmc.run(KEY, *(args or (Y,)), init_params=init_params)
    return mcmc


def gradient_noise():
    """The variance of the gradient of a minibatch drawn without replacement."""
    return N**2 / B * (1 - (B - 1) / (N - 1)) * float(Y.var())


def variance_of_sgld(step, noise):
    return (1 + step * noise / 2) / (PRECISION * (1 - step * PRECISION / 2))


def variance_of_sghmc(step, decay, noise):
    """The stationary covariance of the linear map, by its Lyapunov equation."""
    move = np.array([[1.0, step], [-step * PRECISION, 1.0 - decay]])
    kick = np.diag([0.0, 2 * decay + step**2 * noise])
    flat = np.linalg.solve(np.eye(4) - np.kron(move, move), kick.ravel())
    return flat[0]


def check(mcmc, variance):
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["mean"], np.float64)
    ess = effective_sample_size(draws)
    assert np.all(ess > 100)
    error = 4.5 * np.sqrt(variance / ess)
    assert np.all(np.abs(draws.mean((0, 1)) - MEAN) < error)
    # The coordinates share their minibatches, so they are not three estimates.
    squares = (draws - MEAN) ** 2
    error = 4.5 * np.sqrt(2.0 / effective_sample_size(squares).min())
    found = squares.mean() / variance
    assert abs(found - 1) < error, (found, error)
    return found


@pytest.mark.parametrize("step", [0.02, pytest.param(0.005, marks=pytest.mark.slow)])
def test_sgld_has_the_variance_of_its_step_size(step):
    """Both terms of the bias: they double the variance at the larger step."""
    exact = 1.0 / PRECISION
    expected = variance_of_sgld(step, gradient_noise())
    assert expected / exact > (1.5 if step == 0.02 else 1.1)
    check(run(SGLD(model, step)), expected)


def test_control_variates_take_the_noise_away():
    """The gradients of a Gaussian differ by no more than a constant from row to row."""
    start = {"mean": jnp.full((2, 3), MEAN)}
    mcmc = run(SGLD(model, 0.02, control_variates=True), init_params=start)
    check(mcmc, variance_of_sgld(0.02, 0.0))
    assert set(np.unique(mcmc.get_extra_fields()["num_steps"])) == {2}
    # The same programs on data that are no numbers.
    with pytest.raises(RuntimeError, match="gradient is not finite at the start"):
        mcmc.run(KEY, Y.at[3].set(jnp.nan), init_params=start)


def test_the_gradient_on_all_data_is_that_of_the_whole_model():
    """23 rows in blocks of 5: the rows left over count once."""
    state = SGLD(model, 0.01, control_variates=True).init(KEY, 0, None, (Y,), {})

    def whole(mean):
        likelihood = dist.Normal(mean[None], 1.0).log_prob(Y[:, None]).sum()
        return dist.Normal(0.0, 1.0).log_prob(mean).sum() + likelihood

    expected = jax.jit(jax.grad(whole))(state.centre)
    np.testing.assert_allclose(state.centre_grad, expected, rtol=1e-4)


@pytest.mark.parametrize("step", [0.06, pytest.param(0.02, marks=pytest.mark.slow)])
def test_sghmc_has_the_covariance_of_its_linear_map(step):
    decay = 0.3
    expected = variance_of_sghmc(step, decay, gradient_noise())
    assert expected * PRECISION > (1.5 if step == 0.06 else 1.05)
    check(run(SGHMC(model, step, momentum_decay=decay)), expected)


def test_a_schedule_is_followed_from_the_first_step_on_and_divergences_are_counted():
    def cycles(i):
        """Three cycles, small steps, and steps that diverge."""
        late = jnp.where(i < 150, 0.01, 1e30)
        return jnp.where(i < 30, optax.cosine_decay_schedule(0.01, 10)(i % 10), late)

    mcmc = run(SGHMC(model, cycles), num_warmup=5, num_samples=165)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    expected = [0.005 * (1.0 + np.cos(np.pi * (i % 10) / 10.0)) for i in range(5, 30)]
    sizes = fields["step_size"][:, :25]
    np.testing.assert_allclose(sizes, [expected] * 2, rtol=1e-4, atol=1e-8)
    assert not np.any(fields["diverging"][:, :145])
    assert np.all(fields["diverging"][:, -10:])
    assert np.all(np.isfinite(mcmc.get_samples()["mean"]))


def test_chains_and_steps_have_minibatches_of_their_own():
    """Without noise of its own, a gradient tells the minibatch that it was made on."""
    kernel = SGLD(model, 1e-12)
    kernel.init(KEY, 0, None, (Y,), {})
    estimate = kernel._estimator((Y,), {})
    keys = jax.random.split(KEY, 200)
    found = jax.jit(jax.vmap(lambda k: estimate(jnp.zeros(3), k)[1]))(keys)
    assert len(np.unique(found[:, 0])) > 150
    expected = N * Y.mean()
    error = 4 * np.sqrt(gradient_noise() / 200)
    np.testing.assert_allclose(found.mean(0), expected, atol=error)
    np.testing.assert_allclose(found[:, 0].var(), gradient_noise(), rtol=0.5)


@pytest.mark.slow
def test_deterministic_sites_of_a_minibatch_are_left_out():
    mcmc = run(SGLD(model, 0.01), num_warmup=0, num_samples=3, cls=MCMC)
    draws = mcmc.get_samples()
    assert set(draws) == {"mean", "twice"}
    np.testing.assert_allclose(draws["twice"], 2.0 * draws["mean"], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "cls"),
    [pytest.param(SGLD, MCMC, marks=pytest.mark.slow), (SGHMC, CompiledMCMC)],
)
def test_a_step_size_that_diverges_at_once_is_an_error(kind, cls):
    with pytest.raises(ValueError, match="diverges within the first 100 steps"):
        run(kind(model, 1.0), cls=cls)


# What looks at a step's density is in the class that both share.
@pytest.mark.parametrize(
    "kernel", [(SGLD, 2e-4), pytest.param((SGHMC, 0.0045), marks=pytest.mark.slow)]
)
def test_a_density_of_zero_is_seen_behind_a_finite_gradient(kernel):
    def walled(y, wall):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", N, subsample_size=B) as rows:
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])
        numpyro.factor("wall", jnp.where(mean > wall, -jnp.inf, 0.0))

    kind, step_size = kernel
    mcmc = make(kind(walled, step_size), num_warmup=0, num_samples=600)
    start = {"mean": jnp.array([0.0, -0.5])}
    # The wall is an array, so that both runs have one program.
    with pytest.raises(RuntimeError, match=r"not finite at the start of chains \[0\]"):
        mcmc.run(KEY, Y, jnp.float32(-0.2), init_params=start)
    mcmc.run(KEY, Y, jnp.float32(0.8), init_params=start)
    beyond = np.asarray(mcmc.get_samples(group_by_chain=True)["mean"]) > 0.8
    diverging = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["diverging"])
    assert beyond.any()
    np.testing.assert_array_equal(diverging[:, 1:], beyond[:, :-1])


def whole_rows(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", N):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def latent_rows(y):
    with numpyro.plate("row", N, subsample_size=B) as rows:
        local = numpyro.sample("local", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(local, 1.0), obs=y[rows])


def counts(y):
    numpyro.sample("k", dist.Poisson(1.0))
    model(y)


def test_models_that_it_cannot_sample_are_an_error():
    with pytest.raises(ValueError, match="no subsampled plate"):
        run(SGLD(whole_rows, 0.01), cls=MCMC)
    with pytest.raises(ValueError, match=r"sites \['local'\] stand in a subsampled"):
        run(SGHMC(latent_rows, 0.01))
    with pytest.raises(RuntimeError, match="enumerate support"):
        run(SGLD(counts, 0.01))


@pytest.mark.wrong_types
def test_bad_settings_say_what_was_expected():
    with pytest.raises(ValueError, match="positive step_size"):
        SGLD(model, 0.0)
    with pytest.raises(ValueError, match="momentum_decay"):
        SGHMC(model, 0.1, momentum_decay=1.5)
    with pytest.raises(TypeError, match="takes a NumPyro model"):
        SGLD(None, 0.1)
