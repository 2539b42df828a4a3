"""The kind of an outcome, its class probabilities and its moments."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from pyrox_ppl.prediction._outcome import (
    Outcome,
    class_probabilities,
    mean_and_variance,
    outcome_of,
)

KEY = jax.random.key(0)
LOGITS = np.array([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]], np.float32)


def half():
    return dist.Categorical(probs=jnp.array([0.5, 0.5]))


# Made in the test that takes it: collecting the tests should compile nothing.
KINDS = {
    "normal": (lambda: dist.Normal(0.0, 1.0), "continuous"),
    "lognormal": (lambda: dist.LogNormal(0.0, 1.0), "continuous"),
    "event": (
        lambda: dist.Normal(jnp.zeros((2, 3)), jnp.ones((2, 3))).to_event(1),
        "continuous",
    ),
    "mixture": (
        lambda: dist.MixtureSameFamily(half(), dist.Normal(jnp.zeros(2), 1.0)),
        "continuous",
    ),
    "angle": (lambda: dist.VonMises(0.0, 1.0), "circular"),
    "poisson": (lambda: dist.Poisson(jnp.ones(3)), "count"),
    "binomial": (lambda: dist.Binomial(5, probs=jnp.full(3, 0.5)), "count"),
    "zero-inflated": (lambda: dist.ZeroInflatedPoisson(0.1, 2.0), "count"),
    "uniform integers": (lambda: dist.DiscreteUniform(0, 3), "count"),
    "bernoulli": (lambda: dist.Bernoulli(logits=jnp.zeros(3)), "binary"),
    "pixels": (
        lambda: dist.Bernoulli(probs=jnp.full((2, 3), 0.3)).to_event(1),
        "binary",
    ),
    "masked": (
        lambda: dist.Bernoulli(0.3).expand([4]).mask(jnp.arange(4) > 1),
        "binary",
    ),
    "binary mixture": (
        lambda: dist.MixtureSameFamily(half(), dist.Bernoulli(jnp.array([0.2, 0.4]))),
        "binary",
    ),
    "categorical": (lambda: dist.Categorical(logits=LOGITS), "categorical"),
    "categorical mixture": (
        lambda: dist.MixtureGeneral(
            half(),
            [dist.Categorical(jnp.ones(3) / 3), dist.Categorical(logits=LOGITS[0])],
        ),
        "categorical",
    ),
    "expanded": (lambda: dist.Categorical(logits=LOGITS).expand([4, 2]), "categorical"),
    "ordered": (
        lambda: dist.OrderedLogistic(jnp.zeros(3), jnp.array([-1.0, 1.0])),
        "categorical",
    ),
    "vector": (
        lambda: dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        "multivariate",
    ),
    "simplex": (lambda: dist.Dirichlet(jnp.ones(3)).expand([2]), "multivariate"),
    "counts": (lambda: dist.Multinomial(5, jnp.ones(3) / 3), "multivariate"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_is_that_of_one_value(name):
    make, kind = KINDS[name]
    fn = make()
    outcome = outcome_of(fn)
    assert outcome.kind == kind
    assert outcome.is_ordered == (name == "ordered")
    assert outcome.num_classes == {"binary": 2, "categorical": 3}.get(kind)
    assert isinstance(outcome, Outcome)
    # The same under a transform, where the parameters are abstract.
    kinds = []
    jax.eval_shape(lambda f: kinds.append(outcome_of(f)), fn)
    assert kinds == [outcome]


@pytest.mark.parametrize(
    "name", [name for name, (_, kind) in KINDS.items() if kind == "categorical"]
)
def test_class_probabilities_are_those_of_the_log_density(name):
    fn = KINDS[name][0]()
    ours = class_probabilities(fn)
    hand = [np.exp(fn.log_prob(jnp.full(fn.shape(), k))) for k in range(3)]
    np.testing.assert_allclose(ours, np.stack(hand, -1), rtol=1e-5)
    assert ours.shape == (*fn.shape(), 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bernoulli", np.full(3, 0.5)),
        ("pixels", np.full((2, 3), 0.3)),
        ("masked", np.full(4, 0.3)),
        ("binary mixture", np.array(0.3)),
    ],
)
def test_the_probability_of_one(name, expected):
    ours = class_probabilities(KINDS[name][0]())
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["normal", "lognormal", "event", "poisson", "binomial"]
)
def test_moments_are_those_of_draws(name):
    fn = KINDS[name][0]()
    mean, variance = mean_and_variance(fn)
    with jax.numpy_rank_promotion("allow"):  # NumPyro promotes when it samples
        draws = np.asarray(fn.sample(KEY, (20_000,)), np.float64)
    assert mean.shape == variance.shape == fn.shape()
    np.testing.assert_allclose(mean, draws.mean(0), atol=5 * draws.std() / 141)
    np.testing.assert_allclose(variance, draws.var(0), rtol=0.2)


def test_a_distribution_that_declares_no_support_has_no_kind():
    class Unknown(dist.Distribution):
        def log_prob(self, value):
            return -jnp.abs(value)

    assert outcome_of(Unknown()) is None
    with pytest.raises(ValueError, match="are no classes"):
        class_probabilities(Unknown())
    with pytest.raises(ValueError, match="are no classes"):
        class_probabilities(KINDS["poisson"][0]())


def test_moments_that_no_formula_gives_are_none():
    shift = dist.transforms.AffineTransform(1.0, 2.0)
    assert mean_and_variance(dist.TransformedDistribution(half(), shift)) is None


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_probabilities_of_half_precision_are_those_of_its_logits(dtype):
    fn = dist.Categorical(logits=jnp.asarray(LOGITS, dtype))
    assert fn.probs.dtype == dtype  # which NumPyro keeps, rounded
    p = class_probabilities(fn)
    exact = jax.nn.softmax(fn.logits.astype(jnp.float32))
    np.testing.assert_allclose(p, exact, rtol=1e-6)
    np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-6)


def test_moments_of_half_precision_are_those_of_its_parameters():
    scale = jnp.asarray(0.3, jnp.bfloat16)
    mean, variance = mean_and_variance(dist.Normal(jnp.zeros(2, jnp.bfloat16), scale))
    assert mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_allclose(variance, np.float64(scale) ** 2, rtol=1e-6)
