"""The root of the Fisher information against expectations over the outcomes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from pyrox_ppl.infer.curvature._fisher import _CLOSED, whiten

pytestmark = pytest.mark.rank_promotion
LINE = np.linspace(-60.0, 60.0, 40_001)
HALF = np.linspace(1e-4, 60.0, 40_001)
COUNTS = np.arange(60.0)
FOUR_OF_THREE = np.array([(a, b, 4 - a - b) for a in range(5) for b in range(5 - a)])

# Laplace's kink stands halfway between two points of the line.
# The distribution, its parameters, and the outcomes to sum or integrate over.
CASES = {
    "normal": (dist.Normal, (0.3, 0.7), LINE),
    "log normal": (dist.LogNormal, (0.1, 0.4), HALF),
    "laplace": (dist.Laplace, (0.3015, 0.7), LINE),
    "student": (lambda loc, s: dist.StudentT(5.0, loc, s), (0.3, 0.7), LINE),
    "student, free": (dist.StudentT, (6.0, 0.3, 0.7), LINE),
    "bernoulli": (lambda f: dist.Bernoulli(logits=f), (0.8,), np.arange(2)),
    "bernoulli, probs": (lambda p: dist.Bernoulli(probs=p), (0.3,), np.arange(2)),
    "binomial": (lambda f: dist.Binomial(7, logits=f), (0.8,), np.arange(8)),
    "binomial, probs": (lambda p: dist.Binomial(7, probs=p), (0.3,), np.arange(8)),
    "categorical": (
        lambda a, b, c: dist.Categorical(logits=jnp.stack([a, b, c])),
        (0.3, -0.5, 1.0),
        np.arange(3),
    ),
    "categorical, probs": (
        lambda a, b: dist.Categorical(probs=jnp.stack([a, b, 1 - a - b])),
        (0.2, 0.5),
        np.arange(3),
    ),
    "multinomial": (
        lambda a, b, c: dist.Multinomial(4, logits=jnp.stack([a, b, c])),
        (0.3, -0.5, 1.0),
        FOUR_OF_THREE,
    ),
    "multinomial, probs": (
        lambda a, b: dist.Multinomial(4, probs=jnp.stack([a, b, 1 - a - b])),
        (0.2, 0.5),
        FOUR_OF_THREE,
    ),
    "poisson": (dist.Poisson, (3.0,), COUNTS),
    "poisson, log": (lambda f: dist.Poisson(jnp.exp(f)), (1.1,), COUNTS),
    "exponential": (dist.Exponential, (2.0,), HALF),
}


def site(fn, value, scale=None):
    return {"name": "y", "fn": fn, "value": value, "scale": scale}


def test_every_closed_form_is_tested():
    tested = {type(make(*params)) for make, params, _ in CASES.values()}
    assert set(_CLOSED) - tested == {dist.MultivariateNormal}


def information(make, params, value, key=None, num_samples=1, scale=None):
    """J^T J of the whitened parameters."""

    def z(*params):
        found = whiten(site(make(*params), value, scale), key, num_samples)
        return jnp.concatenate([part.reshape(-1) for part in found.parts])

    params = [jnp.asarray(p) for p in params]
    columns = jax.jit(jax.jacfwd(z, argnums=tuple(range(len(params)))))(*params)
    matrix = np.stack(columns, -1)
    return matrix.T @ matrix


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_expected_product_of_scores(name):
    make, params, outcomes = CASES[name]
    with jax.enable_x64(True):
        params = tuple(jnp.asarray(p) for p in params)

        def log_prob(params, y):
            return make(*params).log_prob(y)

        @jax.jit
        @jax.vmap
        def at(y):
            return log_prob(params, y), jnp.stack(jax.grad(log_prob)(params, y))

        log_density, score = map(np.asarray, at(jnp.asarray(outcomes)))
        density = np.exp(log_density)
        products = density[:, None, None] * score[:, :, None] * score[:, None]
        step = (
            1.0 if np.issubdtype(outcomes.dtype, np.integer) else np.diff(outcomes)[0]
        )
        expected = np.sum(products, 0) * (1.0 if outcomes is COUNTS else step)
        found = information(make, params, outcomes[0])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


def test_of_a_multivariate_normal_it_holds_mean_and_covariance():
    def make(a, b, c):
        tril = jnp.array([[1.0, 0.0], [0.4, 0.0]]) + jnp.diag(jnp.stack([b, c]))
        return dist.MultivariateNormal(jnp.stack([a, 2 * a]), scale_tril=tril)

    params = jnp.array([0.3, 0.5, 1.2])
    at = make(*params)

    def moments(params):
        fn = make(*params)
        return fn.loc, fn.covariance_matrix

    loc, covariance = jax.jit(jax.jacfwd(moments))(params)
    precision = np.linalg.inv(at.covariance_matrix)
    turned = np.einsum("ij,jkp->ikp", precision, covariance)
    expected = loc.T @ precision @ loc
    expected += np.einsum("ijp,jiq->pq", turned, turned) / 2
    found = information(make, params, jnp.zeros(2))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_sampled_labels_approach_it():
    make, params = (lambda m, s: dist.Gumbel(m, s)), (0.3, 0.7)
    found = information(make, params, 0.1, jax.random.key(0), 40_000)
    euler = 0.5772156649
    cross = euler - 1
    expected = np.array([[1.0, cross], [cross, np.pi**2 / 6 + cross**2]]) / 0.7**2
    np.testing.assert_allclose(found, expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_each_row_of_a_law_of_vectors_counts_once(rows):
    def many(a):
        return jnp.broadcast_to(jnp.stack([a, 0.0]), (rows, 2))

    draws = jnp.arange(rows)
    counts = jnp.stack([draws, 7 - draws], -1)
    p = 1 / (1 + np.exp(-0.4))
    found = information(lambda a: dist.Multinomial(7, logits=many(a)), (0.4,), counts)
    np.testing.assert_allclose(found, [[7 * rows * p * (1 - p)]], rtol=1e-5)
    found = information(
        lambda a: dist.MultivariateNormal(many(a), jnp.eye(2)), (0.4,), counts
    )
    np.testing.assert_allclose(found, [[rows]], rtol=1e-5)


def test_without_a_key_an_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match=r"'y' \(Gumbel\).*pass a `key`"):
        whiten(site(dist.Gumbel(0.0, 1.0), 0.1), None, 1)


def test_scale_and_masks_weigh_the_rows():
    mask = jnp.array([True, False, True])
    inner = jnp.array([[True, True], [True, True], [True, False]])

    def make(m):
        fn = dist.Normal(m, 2.0).expand([3, 2]).mask(inner)
        return fn.to_event(1).mask(mask)

    scale = jnp.array([2.0, 1.0, 5.0])
    found = information(make, (0.3,), jnp.zeros((3, 2)), scale=scale)
    # Two entries of weight 2, none of the second row, one of weight 5.
    np.testing.assert_allclose(found, [[(2 * 2 + 5) / 4]], rtol=1e-6)


def test_each_entry_of_a_broadcast_observation_counts():
    found = information(lambda m: dist.Normal(m, 2.0), (0.3,), jnp.zeros(7))
    np.testing.assert_allclose(found, [[7 / 4]], rtol=1e-6)


@pytest.mark.parametrize("place", range(3))
def test_a_class_that_is_ruled_out_does_no_harm(place):
    def make(a):
        logits = jnp.insert(jnp.stack([a, 0.0]), place, -jnp.inf)
        return dist.Categorical(logits=logits, validate_args=False)

    p = 1 / (1 + np.exp(-0.4))
    found = information(make, (0.4,), 0)
    np.testing.assert_allclose(found, [[p * (1 - p)]], rtol=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_a_class_is_known_from_the_others_and_needs_no_column(classes):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, classes)))
    fn = dist.Categorical(logits=logits)
    (z,) = whiten(site(fn, jnp.zeros(3, int)), None, 1).parts
    assert z.shape == (3, max(classes - 1, 1))
