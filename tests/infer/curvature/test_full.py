"""The full curvature, and the low-rank one: closed forms and the prior's part."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import potential_energy

from pyrox_ppl.infer.curvature import (
    ModelAtMode,
    make_curvature,
    prior_precision,
    restore_curvature,
)

pytestmark = pytest.mark.rank_promotion
RNG = np.random.default_rng(0)
N, D, STD, NOISE = 24, 3, 0.8, 0.5
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = (X @ [1.0, -0.5, 0.2] + RNG.normal(size=N)).astype(np.float32)
W = jnp.array([0.9, -0.4, 0.1])


def regression(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, STD).expand([D]).to_event(1))
    with numpyro.plate("row", N, subsample_size=len(x)):
        numpyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def logistic(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, STD).expand([D]).to_event(1))
    with numpyro.plate("row", N, subsample_size=len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def fit(structure, at_mode, *batches, weight=1.0, **options):
    curvature = make_curvature(structure, at_mode, batches[0], {}, **options)
    for _ in range(curvature.num_passes):
        for batch in batches:
            curvature = curvature.accumulate(at_mode, batch, {}, weight=weight)
        curvature = curvature.finish_pass()
    return curvature


def matrix(at_mode, *batches, **options):
    return np.asarray(fit("full", at_mode, *batches, **options).arrays["full"])


def test_of_a_linear_regression_it_is_the_gram_matrix():
    at_mode = ModelAtMode(regression, {"w": W})
    np.testing.assert_allclose(
        matrix(at_mode, (X, Y)), X.T @ X / NOISE**2, rtol=1e-5, atol=1e-4
    )
    posterior = fit("full", at_mode, (X, Y)).posterior(
        prior_precision("full", at_mode, (X, Y), {})
    )
    posterior.check()
    precision = X.T @ X / NOISE**2 + np.eye(D) / STD**2
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(
        posterior.diagonal()["w"], np.diag(covariance), rtol=1e-5
    )
    np.testing.assert_allclose(
        posterior.log_det(), np.linalg.slogdet(precision)[1], rtol=1e-5
    )
    np.testing.assert_allclose(
        posterior.solve({"w": W})["w"], covariance @ W, rtol=1e-4
    )
    draws = posterior.sample(jax.random.key(0), (40_000,))["w"]
    np.testing.assert_allclose(np.cov(draws.T), covariance, rtol=0.05, atol=2e-4)


def test_of_a_logistic_regression_it_weighs_the_rows():
    at_mode = ModelAtMode(logistic, {"w": W})
    p = 1 / (1 + np.exp(-X @ W))
    expected = X.T @ (X * (p * (1 - p))[:, None])
    np.testing.assert_allclose(
        matrix(at_mode, (X, Y > 0)), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("structure", ["full", "kron", "diag", "low_rank"])
def test_minibatches_of_a_scaled_plate_add_up_to_the_data_once(structure):
    at_mode = ModelAtMode(logistic, {"w": W})
    whole = fit(structure, at_mode, (X, Y > 0))
    batches = [(X[i : i + 8], Y[i : i + 8] > 0) for i in (0, 8, 16)]
    parts = fit(structure, at_mode, *batches, weight=1 / 3)
    prior = prior_precision(structure, at_mode, (X, Y > 0), {})
    for posterior in (whole.posterior(prior), parts.posterior(prior)):
        posterior.check()
    found, expected = (c.posterior(prior).diagonal()["w"] for c in (parts, whole))
    tolerance = 0.05 if structure == "kron" else 1e-4  # a product of two means
    np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_handlers_of_scale_and_mask_count():
    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, STD).expand([D]).to_event(1))
        mask = jnp.arange(len(x)) < 10
        with handlers.scale(scale=3.0), handlers.mask(mask=mask):
            numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    at_mode = ModelAtMode(model, {"w": W})
    plain = ModelAtMode(logistic, {"w": W})
    # The plate takes its ten rows for a part of all.
    expected = 3 * 10 / N * matrix(plain, (X[:10], Y[:10] > 0))
    np.testing.assert_allclose(matrix(at_mode, (X, Y > 0)), expected, rtol=1e-5)


def heteroscedastic(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([D, 2]).to_event(2))
    nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
    f = x @ w
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.StudentT(nu, f[:, 0], jnp.exp(f[:, 1])), obs=y)


@pytest.mark.parametrize("rows", [3, N])
def test_both_ways_through_a_model_agree_with_explicit_jacobians(rows):
    """Three rows have fewer outputs than entries, so they take the backward way."""
    mode = {"w": jnp.array(RNG.normal(size=(D, 2)), jnp.float32), "nu": jnp.log(5.0)}
    at_mode, x = ModelAtMode(heteroscedastic, mode), jnp.asarray(X[:rows])

    def parameters(vector):
        f = x @ vector[1:].reshape(D, 2)
        return jnp.stack([f[:, 0], jnp.exp(f[:, 1]), jnp.exp(vector[0]) + 0 * f[:, 0]])

    vector = jnp.concatenate([mode["nu"][None], mode["w"].reshape(-1)])
    _, scale, _ = parameters(vector)
    rows_of = np.asarray(jax.jit(jax.jacfwd(parameters))(vector))
    nu = 5.0
    trigamma = jax.scipy.special.polygamma(1, jnp.array([nu / 2, (nu + 1) / 2]))
    expected = np.zeros((7, 7))
    for n in range(rows):
        s = float(scale[n])
        cross = -2 / (s * (nu + 1) * (nu + 3))
        own = (trigamma[0] - trigamma[1]) / 4
        own -= (nu + 5) / (2 * nu * (nu + 1) * (nu + 3))
        fisher = np.array(
            [
                [(nu + 1) / (nu + 3) / s**2, 0, 0],
                [0, 2 * nu / (nu + 3) / s**2, cross],
                [0, cross, float(own)],
            ]
        )
        expected += rows_of[:, n].T @ fisher @ rows_of[:, n]
    found = matrix(at_mode, (x, Y[:rows]))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_prior_is_the_hessian_in_unconstrained_space():
    def model():
        s = numpyro.sample("s", dist.Gamma(2.0, 3.0))
        numpyro.sample("w", dist.Normal(0.0, s).expand([2]).to_event(1))

    def with_data(x):
        model()
        numpyro.sample("y", dist.Normal(x, 1.0), obs=x)

    mode = {"s": jnp.asarray(-0.3), "w": jnp.array([0.4, -1.0])}
    at_mode = ModelAtMode(with_data, mode)
    prior = prior_precision("full", at_mode, (0.0,), {}).arrays["precision"]

    def energy(vector):
        values = {"s": vector[0], "w": vector[1:]}
        return potential_energy(model, (), {}, values)

    vector = jnp.concatenate([mode["s"][None], mode["w"]])
    expected = jax.jit(jax.hessian(energy))(vector)
    np.testing.assert_allclose(prior, expected, rtol=1e-5, atol=1e-5)
    diagonal = prior_precision("diag", at_mode, (0.0,), {})
    np.testing.assert_allclose(diagonal.arrays["s"], expected[0, 0], rtol=1e-5)
    np.testing.assert_allclose(diagonal.arrays["w"], expected[1, 1], rtol=1e-5)


def test_a_prior_that_couples_entries_needs_the_full_structure():
    def model(y):
        cov = jnp.array([[1.0, 0.5], [0.5, 1.0]])
        w = numpyro.sample("w", dist.MultivariateNormal(jnp.zeros(2), cov))
        numpyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=y)

    at_mode = ModelAtMode(model, {"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"'w' couples its entries"):
        prior_precision("diag", at_mode, (jnp.zeros(2),), {})


def test_a_direction_that_nothing_fixes_is_an_error_or_damped():
    def model(x, y):
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal((a + b) * x, 1.0).to_event(1), obs=y)

    mode = {"a": jnp.asarray(0.1), "b": jnp.asarray(0.2)}
    at_mode, batch = ModelAtMode(model, mode), (X[:, 0], Y)
    curvature = fit("full", at_mode, batch)
    prior = prior_precision("full", at_mode, batch, {})
    with pytest.raises(ValueError, match=r"for the site '[ab]'.*`damping=`"):
        curvature.posterior(prior).check()
    damped = curvature.posterior(prior, damping=2.0)
    damped.check()
    total = np.full((2, 2), np.sum(X[:, 0] ** 2)) + 2 * np.eye(2)
    expected = np.diag(np.linalg.inv(total))
    np.testing.assert_allclose(damped.diagonal()["a"], expected[0], rtol=1e-4)


def test_sites_left_out_are_held_at_the_mode():
    mode = {"w": jnp.ones((D, 2)), "nu": jnp.log(5.0)}
    whole = matrix(ModelAtMode(heteroscedastic, mode), (X, Y))
    part = matrix(ModelAtMode(heteroscedastic, mode, sites=("w",)), (X, Y))
    np.testing.assert_allclose(part, whole[1:, 1:], rtol=1e-5)
    with pytest.raises(ValueError, match=r"\['v'\] are no latent sites"):
        ModelAtMode(heteroscedastic, mode, sites=("v",))


def test_gradients_vanish_together_at_the_mode():
    precision = X.T @ X / NOISE**2 + np.eye(D) / STD**2
    mode = np.linalg.solve(precision, X.T @ Y / NOISE**2).astype(np.float32)
    at_mode = ModelAtMode(regression, {"w": mode})
    one, other = (
        jax.grad(density)(at_mode.start, (X, Y), {})["w"]
        for density in (at_mode.log_likelihood, at_mode.log_prior)
    )
    np.testing.assert_allclose(one, mode / STD**2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(one + other, 0.0, atol=1e-4)


def test_the_low_rank_one_converges_to_the_full_one():
    mode = {"w": jnp.array(RNG.normal(size=(D, 2)), jnp.float32), "nu": jnp.log(5.0)}
    at_mode = ModelAtMode(heteroscedastic, mode)
    full = matrix(at_mode, (X, Y))
    values = np.linalg.eigvalsh(full)[::-1]
    prior = prior_precision("low_rank", at_mode, (X, Y), {})
    flat = np.asarray(at_mode.start["nu"]) * 0 + np.asarray(prior.full()["nu"])
    diagonal = np.concatenate([[flat], np.asarray(prior.full()["w"]).reshape(-1)])
    for rank in (2, 7):
        found = fit("low_rank", at_mode, (X, Y), rank=rank)
        np.testing.assert_allclose(
            found.arrays["values"], values[:rank], rtol=1e-3, atol=1e-4
        )
    total = full + np.diag(diagonal)
    posterior = found.posterior(prior)
    posterior.check()
    expected = np.linalg.inv(total)
    np.testing.assert_allclose(
        posterior.diagonal()["w"].reshape(-1), np.diag(expected)[1:], rtol=1e-3
    )
    np.testing.assert_allclose(
        posterior.log_det(), np.linalg.slogdet(total)[1], rtol=1e-4
    )
    solved = posterior.solve({"nu": jnp.ones(()), "w": jnp.ones((D, 2))})
    np.testing.assert_allclose(
        solved["w"].reshape(-1), expected.sum(1)[1:], rtol=1e-3, atol=1e-4
    )
    draws = posterior.sample(jax.random.key(0), (60_000,))["w"].reshape(-1, 6)
    np.testing.assert_allclose(np.cov(draws.T), expected[1:, 1:], atol=0.01)


@pytest.mark.parametrize("structure", ["full", "kron", "diag", "low_rank"])
def test_arrays_restore_the_posterior_and_the_scale_of_a_prior_has_a_gradient(
    structure,
):
    at_mode = ModelAtMode(logistic, {"w": W})
    curvature = fit(structure, at_mode, (X, Y > 0))
    prior = prior_precision(structure, at_mode, (X, Y > 0), {})
    shapes = {"w": (D,)}
    again = restore_curvature(structure, curvature.arrays, shapes)
    key = jax.random.key(0)
    one, other = (c.posterior(prior).sample(key, (2,))["w"] for c in (curvature, again))
    np.testing.assert_array_equal(one, other)

    def log_det(factor):
        return curvature.posterior(prior.scale(factor)).log_det()

    step = 1e-2
    slope = (log_det(1 + step) - log_det(1 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(log_det)(1.0), slope, rtol=0.01)


def test_without_data_or_a_value_the_model_is_refused():
    with pytest.raises(ValueError, match="no observed site"):
        fit("full", ModelAtMode(regression, {"w": W}), (X, None))
    with pytest.raises(ValueError, match="'w' has no value at the mode"):
        fit("full", ModelAtMode(regression, {"v": W}), (X, Y))
