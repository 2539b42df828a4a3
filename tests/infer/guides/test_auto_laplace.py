"""AutoLaplace against closed forms: posteriors, evidence, Fisher matrices, priors."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import log_density
from scipy.optimize import minimize

import pyrox_ppl as px
from pyrox_ppl.infer import AutoLaplace, MinibatchLoader

pytestmark = pytest.mark.rank_promotion
ROWS, NOISE = 30, 0.4
RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(ROWS, 2)), np.ones((ROWS, 1))], 1)
WEIGHTS = np.array([1.0, -0.7, 0.4])
LINE = X @ WEIGHTS
Y = LINE + NOISE * RNG.normal(size=ROWS)
PRIOR_STD = np.array([1.0, 1.0, 2.0])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def latent_weights():
    """Weights in two sites, of different priors."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    b = numpyro.sample("b", dist.Normal(0.0, 2.0))
    return jnp.concatenate([a, b[None]])


def regression(x, y=None, rows=None):
    f = x @ latent_weights()
    with numpyro.plate("row", rows or len(x), subsample_size=len(x)):
        numpyro.sample("y", dist.Normal(f, NOISE), obs=y)


def solution(x=X, y=Y, std=PRIOR_STD):
    """Mean, covariance and log evidence of Bayesian linear regression."""
    covariance = np.linalg.inv(x.T @ x / NOISE**2 + np.diag(std**-2.0))
    of_data = x @ np.diag(std**2.0) @ x.T + NOISE**2 * np.eye(len(y))
    evidence = dist.MultivariateNormal(jnp.zeros(len(y)), of_data).log_prob(y)
    return covariance @ x.T @ y / NOISE**2, covariance, float(evidence)


def at_mode(model, structure, *args):
    """A guide, and its parameters at a mode that SciPy found."""
    guide = AutoLaplace(model, structure)
    with handlers.seed(rng_seed=0), handlers.block():
        first = guide(*args)
    # NumPyro's Bernoulli has no derivative where the logits are exactly zero.
    start = {n: jnp.full(jnp.shape(v), 0.1) for n, v in first.items()}
    supports = {n: biject_to(guide.prototype_trace[n]["fn"].support) for n in first}
    flat, unravel = jax.flatten_util.ravel_pytree(start)

    @jax.jit
    @jax.value_and_grad
    def energy(vector):
        u = unravel(vector)
        fixed = {n: supports[n](u[n]) for n in u}
        volume = sum(supports[n].log_abs_det_jacobian(u[n], fixed[n]).sum() for n in u)
        return -volume - log_density(handlers.seed(model, 0), args, {}, fixed)[0]

    mode = minimize(lambda v: tuple(energy(v)), flat, jac=True, tol=1e-12).x
    values = unravel(jnp.asarray(mode)).items()
    return guide, {f"{n}_auto_loc": supports[n](u) for n, u in values}


@functools.cache
def mode_of_regression():
    return at_mode(regression, "full", X, Y)[1]


@functools.cache
def fit_of_regression(structure="full", model=regression, **options):
    """A guide of the regression, and its fit."""
    guide = AutoLaplace(model, structure, **options)
    x, y = jnp.asarray(X), jnp.asarray(Y)
    with handlers.seed(rng_seed=0), handlers.block():
        guide(x, y)
    return guide, guide.add_curvature(mode_of_regression(), x, y)


def covariance_of(guide, params, names=("a", "b")):
    """The covariance of the unconstrained sites, column by column."""
    posterior = guide._fit(params).posterior(0.0)
    values = {name: guide._unconstrained(params)[name] for name in names}
    flat, unravel = jax.flatten_util.ravel_pytree(values)
    columns = [posterior.solve(unravel(row)) for row in jnp.eye(flat.size)]
    return np.stack([jax.flatten_util.ravel_pytree(c)[0] for c in columns])


@pytest.mark.parametrize(("structure", "rank"), [("full", 1), ("low_rank", 3)])
def test_linear_regression_is_exact(structure, rank):
    guide, params = fit_of_regression(structure, rank=rank)
    mean, covariance, evidence = solution()
    median = guide.median(params)
    np.testing.assert_allclose([*median["a"], median["b"]], mean, rtol=1e-5)
    np.testing.assert_allclose(covariance_of(guide, params), covariance, rtol=1e-5)
    np.testing.assert_allclose(guide.log_evidence(params), evidence, rtol=1e-6)
    levels = guide.quantiles(params, [0.5, 0.8413447460685429])
    spread = np.append(levels["a"][1] - levels["a"][0], levels["b"][1] - levels["b"][0])
    np.testing.assert_allclose(spread, np.sqrt(np.diag(covariance)), rtol=1e-5)
    key = jax.random.key(0)
    draws = guide.sample_posterior(key, params, sample_shape=(2, 10_000))
    joined = np.concatenate([draws["a"], draws["b"][..., None]], -1).reshape(-1, 3)
    np.testing.assert_allclose(np.cov(joined.T), covariance, atol=5e-4)


def test_kronecker_factors_are_exact_where_the_posterior_factorises():
    outputs = np.stack([Y, -2.0 * Y], 1)
    linear = eqx.nn.Linear(3, 2, use_bias=False, key=jax.random.key(0))

    def two_outputs(x, y):
        with px.bayesianize():
            net = px.bind(linear, "net")
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x), NOISE).to_event(2), obs=y)

    guide, params = at_mode(two_outputs, "kron", X, outputs)
    fit = guide.add_curvature(params, X, outputs)
    one = np.linalg.inv(X.T @ X / NOISE**2 + np.eye(3))
    found = covariance_of(guide, fit, ["net.weight"])
    np.testing.assert_allclose(found, np.kron(np.eye(2), one), rtol=1e-5, atol=1e-9)


def test_low_rank_converges_to_full_with_the_rank():
    _, covariance, _ = solution()
    fits = [fit_of_regression("low_rank", rank=rank) for rank in (1, 2, 3)]
    errors = [np.abs(covariance_of(*fit) - covariance).max() for fit in fits]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6


def test_all_rows_of_a_loader_count_once():
    loader = MinibatchLoader((X, Y), 7, rng_key=jax.random.key(0))
    guide, whole = fit_of_regression()
    parts = guide.add_curvature(mode_of_regression(), loader, rows=ROWS)
    assert set(parts) == set(whole)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-8, atol=1e-8)


def test_a_plate_that_draws_rows_takes_all_of_them():
    def drawing(x, y):
        weights = latent_weights()
        with numpyro.plate("row", len(x), subsample_size=4) as rows:
            f = x[rows] @ weights
            numpyro.sample("y", dist.Normal(f, NOISE), obs=y[rows])

    guide, fit = fit_of_regression(model=drawing)
    np.testing.assert_allclose(covariance_of(guide, fit), solution()[1], rtol=1e-5)


def test_the_sites_outside_where_stay_at_the_mode():
    guide, fit = fit_of_regression(where="a")
    expected = np.linalg.inv(X[:, :2].T @ X[:, :2] / NOISE**2 + np.eye(2))
    np.testing.assert_allclose(covariance_of(guide, fit, ["a"]), expected, rtol=1e-5)
    draws = guide.sample_posterior(jax.random.key(0), fit, sample_shape=(50,))
    assert draws["a"].std() > 0.01
    np.testing.assert_array_equal(draws["b"], np.full(50, fit["b_auto_loc"]))


def test_tune_prior_finds_the_maximum_of_the_evidence():
    guide, fit = fit_of_regression()

    def worst(logs, of=(0, 0, 1)):
        return -solution(std=np.exp(np.asarray(logs))[list(of)])[2]

    best = np.exp(minimize(worst, np.zeros(2), tol=1e-10).x)
    priors = guide.tune_prior(fit, X, Y)
    found = [float(priors[name].scale) for name in ("a", "b")]
    np.testing.assert_allclose(found, best, rtol=1e-4)
    assert {float(p.loc) for p in priors.values()} == {0.0}

    def worst_factor(log):
        return -solution(std=PRIOR_STD * np.exp(log))[2]

    factor = np.exp(minimize(worst_factor, 0.0, tol=1e-10).x)
    both = guide.tune_prior(fit, X, Y, groups=["*"])
    np.testing.assert_allclose(
        [both["a"].scale, both["b"].scale], factor * PRIOR_STD[1:], rtol=1e-4
    )
    assert list(guide.tune_prior(fit, X, Y, groups=["a"])) == ["a"]


def logistic(x, y=None):
    numpyro.sample("y", dist.Bernoulli(logits=x @ latent_weights()).to_event(1), obs=y)


def test_logistic_regression_is_that_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.linear_model")
    y = (LINE + RNG.logistic(size=ROWS) > 0).astype(int)

    def same_prior(x, y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.5).expand([3]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ a).to_event(1), obs=y)

    guide, params = at_mode(same_prior, "full", X, y)
    fit = guide.add_curvature(params, X, y)
    peer = sklearn.LogisticRegression(C=1.5**2, fit_intercept=False, tol=1e-10)
    peer.fit(X, y)
    np.testing.assert_allclose(params["a_auto_loc"], peer.coef_[0], rtol=1e-4)
    p = peer.predict_proba(X)[:, 1]
    precision = (X * (p * (1 - p))[:, None]).T @ X + np.eye(3) / 1.5**2
    np.testing.assert_allclose(
        covariance_of(guide, fit, ["a"]), np.linalg.inv(precision), rtol=1e-4
    )


def poisson(x, y):
    numpyro.sample("y", dist.Poisson(jnp.exp(x @ latent_weights())).to_event(1), obs=y)


def categorical(x, y):
    weights = latent_weights()
    logits = (x @ weights)[:, None] * jnp.array([0.0, 1.0, 2.0])[None]
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)


def student(x, y):
    numpyro.sample(
        "y", dist.StudentT(4.0, x @ latent_weights(), NOISE).to_event(1), obs=y
    )


def noisy(x, y):
    f = x @ latent_weights()
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    numpyro.sample("y", dist.Normal(f, noise).to_event(1), obs=y)


def two_heads(x, y):
    f = x @ latent_weights()
    c = numpyro.sample("c", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(f, jnp.exp(x @ c)).to_event(1), obs=y)


def weighted(by, x=X):
    return (x * np.broadcast_to(by, len(x))[:, None]).T @ x


def fisher(name, median):
    """The precision of the likelihood, in the order of the names of sites."""
    f = X @ np.append(median["a"], median["b"])
    match name:
        case "poisson":
            return weighted(np.exp(f))
        case "categorical":
            p = np.exp(f[:, None] * np.arange(3.0))
            p = p / p.sum(1, keepdims=True)
            return weighted(p @ np.arange(3.0) ** 2 - (p @ np.arange(3.0)) ** 2)
        case "student":
            return weighted(5.0 / 7.0 / NOISE**2)
        case "noisy":
            out = np.zeros((4, 4))
            out[:3, :3], out[3, 3] = weighted(median["noise"] ** -2), 2 * ROWS
            return out
        case _:
            out = np.zeros((6, 6))
            scale = np.exp(X @ median["c"])
            out[:3, :3], out[3:, 3:] = weighted(scale**-2), weighted(2.0)
            return out


COUNTS = RNG.poisson(np.exp(LINE))
CLASSES = RNG.integers(0, 3, ROWS)


@pytest.mark.parametrize(
    ("model", "y", "more"),
    [
        (poisson, COUNTS, {}),
        (categorical, CLASSES, {}),
        (student, Y, {}),
        (noisy, Y, {"noise": 1}),
        (two_heads, Y, {"c": 3}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_curvature_of_likelihoods_is_their_fisher_matrix(model, y, more):
    guide, params = at_mode(model, "full", X, y)
    fit = guide.add_curvature(params, X, y)
    expected = fisher(model.__name__, guide.median(params))
    prior = np.concatenate([PRIOR_STD, *(np.ones(size) for size in more.values())])
    covariance = covariance_of(guide, fit, ["a", "b", *more])
    np.testing.assert_allclose(
        np.linalg.inv(covariance), expected + np.diag(prior**-2.0), rtol=1e-4, atol=1e-3
    )
