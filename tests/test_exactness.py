"""Bayesian linear regression through bayesianize against the closed-form posterior."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_stats import ess
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.util import log_density

import pyrox_ppl as px

NOISE, PRIOR_STD, ROWS, DIM = 0.3, 0.7, 12, 3
rng = np.random.default_rng(0)
X = rng.normal(size=(ROWS, DIM)).astype(np.float32)
Y = (X @ [0.5, -1.0, 0.2] + 0.4 + NOISE * rng.normal(size=ROWS)).astype(np.float32)
LINEAR = eqx.nn.Linear(DIM, 1, key=jax.random.key(0))


def model(x, y=None):
    with px.bayesianize(prior_std=PRIOR_STD):
        net = px.bind(LINEAR, "net")
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], NOISE), obs=y)


def by_hand(x, y=None):
    prior = dist.Normal(0.0, PRIOR_STD)
    weight = numpyro.sample("net.weight", prior.expand((1, DIM)).to_event(2))
    bias = numpyro.sample("net.bias", prior.expand((1,)).to_event(1))
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal((x @ weight.T + bias)[:, 0], NOISE), obs=y)


def closed_form():
    """Mean and covariance of (weight, bias): the conjugate normal posterior."""
    design = np.hstack([X, np.ones((ROWS, 1))]).astype(np.float64)
    precision = design.T @ design / NOISE**2 + np.eye(DIM + 1) / PRIOR_STD**2
    covariance = np.linalg.inv(precision)
    return covariance @ design.T @ Y / NOISE**2, covariance


@pytest.fixture(scope="module")
def draws():
    mcmc = MCMC(
        NUTS(model),
        num_warmup=500,
        num_samples=2000,
        num_chains=2,
        progress_bar=False,
        chain_method="sequential",
    )
    mcmc.run(jax.random.key(1), X, y=Y)
    samples = mcmc.get_samples(group_by_chain=True)
    weight, bias = samples["net.weight"][:, :, 0], samples["net.bias"]
    return np.concatenate([weight, bias], axis=-1)


def test_nuts_agrees_with_the_closed_form_within_monte_carlo_error(draws):
    mean, covariance = closed_form()
    std = np.sqrt(np.diag(covariance))
    for i in range(DIM + 1):
        chains = draws[..., i]
        effective = float(ess(chains, chain_axis=0, draw_axis=1))
        squares = (chains - mean[i]) ** 2
        effective_square = float(ess(squares, chain_axis=0, draw_axis=1))
        assert min(effective, effective_square) > 1000
        # The mean of ESS draws has standard error std / sqrt(ESS), their variance
        # variance * sqrt(2 / ESS); 4 of them are passed once in 16,000 times.
        assert abs(chains.mean() - mean[i]) < 4 * std[i] / np.sqrt(effective)
        error = abs(squares.mean() / std[i] ** 2 - 1)
        assert error < 4 * np.sqrt(2 / effective_square)


def test_nuts_agrees_with_the_closed_form_correlations(draws):
    _, covariance = closed_form()
    std = np.sqrt(np.diag(covariance))
    sampled = np.corrcoef(draws.reshape(-1, DIM + 1).T)
    np.testing.assert_allclose(sampled, covariance / np.outer(std, std), atol=0.1)


@pytest.mark.rank_promotion
def test_the_log_density_is_that_of_the_model_by_hand():
    for seed in range(20):
        weight_key, bias_key = jax.random.split(jax.random.key(seed))
        params = {
            "net.weight": jax.random.normal(weight_key, (1, DIM)),
            "net.bias": jax.random.normal(bias_key, (1,)),
        }
        ours, _ = log_density(model, (X,), {"y": Y}, params)
        theirs, _ = log_density(by_hand, (X,), {"y": Y}, params)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        weight, bias = params["net.weight"], params["net.bias"]
        closed = -0.5 * np.sum(((X @ weight.T + bias)[:, 0] - Y) ** 2) / NOISE**2
        closed -= ROWS * np.log(NOISE) + ROWS / 2 * np.log(2 * np.pi)
        theta = np.append(weight, bias)
        closed -= 0.5 * np.sum(theta**2) / PRIOR_STD**2
        closed -= (DIM + 1) * (np.log(PRIOR_STD) + 0.5 * np.log(2 * np.pi))
        np.testing.assert_allclose(ours, closed, rtol=1e-5)


@pytest.mark.rank_promotion
def test_the_compiled_potential_has_the_instructions_of_the_model_by_hand():
    params = {"net.weight": jnp.ones((1, DIM)), "net.bias": jnp.ones(1)}

    def instructions(which):
        def potential(params, x, y):
            return -log_density(which, (x,), {"y": y}, params)[0]

        jitted = jax.jit(jax.value_and_grad(potential))
        text = jitted.lower(params, X, Y).compile().as_text()
        return sorted(re.findall(r" = \S+ ([a-z-]+)\(", text))

    assert len(instructions(model)) > 100
    assert instructions(model) == instructions(by_hand)


def test_svi_with_the_exact_family_agrees_with_the_closed_form():
    guide = AutoMultivariateNormal(model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.02), Trace_ELBO(num_particles=8))
    result = svi.run(jax.random.key(2), 2000, X, y=Y, progress_bar=False)
    posterior = guide.get_posterior(result.params)
    mean, covariance = closed_form()
    np.testing.assert_allclose(posterior.mean, mean, atol=0.03)
    std = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(np.sqrt(posterior.variance), std, rtol=0.15)
