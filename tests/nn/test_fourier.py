"""Fourier features against their formula and the kernel that they stand for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

import pyrox_ppl as px
from pyrox_ppl.nn import (
    SIREN,
    ConditionedINR,
    FiLM,
    HyperFourierFeatures,
    RandomKitchenSinks,
    RBFFourierFeatures,
)

KEY = jax.random.key(0)
rng = np.random.default_rng(0)
X = rng.normal(size=(12, 2)).astype(np.float32)


def rbf(x, lengthscale):
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    return np.exp(-squares / (2 * lengthscale**2))


def test_the_features_are_their_formula():
    module = RBFFourierFeatures.init(2, 5, key=KEY, lengthscale=0.3)
    assert module.log_lengthscale.shape == ()
    np.testing.assert_allclose(module.log_lengthscale, np.log(0.3), rtol=1e-6)
    phase = X @ np.asarray(module.frequencies) / 0.3
    expected = np.sqrt(1 / 5) * np.concatenate([np.cos(phase), np.sin(phase)], axis=-1)
    np.testing.assert_allclose(module(X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [100, 4000])
@pytest.mark.parametrize("lengthscale", [0.5, 2.0])
def test_inner_products_converge_to_the_rbf_kernel(lengthscale, n):
    def inner_products(key):
        phi = RBFFourierFeatures.init(2, n, key=key, lengthscale=lengthscale)(X)
        return phi @ phi.T

    k = rbf(X, lengthscale)
    draws = np.asarray(jax.lax.map(inner_products, jax.random.split(KEY, 100)))
    error = np.sqrt(np.mean((draws - k) ** 2))
    # n independent cosines of w'd, w ~ N(0, I), each of variance E cos^2 - k^2.
    expected = np.sqrt(np.mean((1 + k**4) / 2 - k**2) / n)
    assert error == pytest.approx(expected, rel=0.2)
    assert n < 4000 or error < 0.011


def test_a_point_has_unit_inner_product_with_itself_whatever_n():
    phi = RBFFourierFeatures.init(2, 3, key=KEY)(X)
    np.testing.assert_allclose((phi**2).sum(-1), 1.0, rtol=1e-5)


def test_the_frequencies_are_standard_normal():
    draws = np.sort(RBFFourierFeatures.init(4, 500, key=KEY).frequencies, axis=None)
    steps = (np.arange(draws.size) + 0.5) / draws.size
    distance = np.abs(steps - np.asarray(dist.Normal().cdf(draws))).max()
    assert distance < 1.95 / np.sqrt(draws.size)


def make_sinks(n=4, out=1):
    rff_key, key = jax.random.split(KEY)
    rff = RBFFourierFeatures.init(2, n, key=rff_key, lengthscale=0.8)
    return RandomKitchenSinks.init(rff, out, key=key)


def test_kitchen_sinks_are_a_linear_model_of_the_features():
    net = make_sinks(out=3)
    beta, b = np.asarray(net.readout.weight).T, np.asarray(net.readout.bias)
    np.testing.assert_allclose(
        net(X), np.asarray(net.rff(X)) @ beta + b, rtol=1e-5, atol=1e-6
    )


def test_with_a_prior_on_the_readout_it_is_a_gaussian_process():
    net = make_sinks(n=500)

    def model():
        with px.bayesianize(where="*.readout.weight"):
            numpyro.deterministic("f", net(X)[:, 0])

    prior = numpyro.infer.Predictive(model, num_samples=2000)
    draws = np.asarray(prior(jax.random.key(1))["f"])
    assert np.abs(draws.mean(0) - net.readout.bias).max() < 4 / np.sqrt(2000)
    # The standard error of a covariance of unit Gaussians is at most sqrt(2 / draws).
    phi, covariance = np.asarray(net.rff(X)), np.cov(draws.T)
    assert np.abs(covariance - phi @ phi.T).max() < 4.5 * np.sqrt(2 / 2000)
    assert np.abs(phi @ phi.T - rbf(X, 0.8)).max() < 4.5 / np.sqrt(500)


def test_per_name_priors_make_the_sparse_spectrum_gaussian_process():
    net = make_sinks()
    y = np.sin(X[:, 0])
    root = "random_kitchen_sinks"

    def ours():
        priors = {
            "*.frequencies": dist.Normal(0.0, 1.0),
            "*.log_lengthscale": dist.Normal(-0.3, 0.5),
            "*.readout.*": dist.Normal(0.0, 0.7),
        }
        with px.bayesianize(prior=priors):
            f = net(X)[:, 0]
        with numpyro.plate("row", 12):
            numpyro.sample("y", dist.Normal(f, 0.1), obs=y)

    def by_hand():
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 4]).to_event(2))
        lengthscale = numpyro.sample("lengthscale", dist.LogNormal(-0.3, 0.5))
        beta = numpyro.sample("beta", dist.Normal(0.0, 0.7).expand([8]).to_event(1))
        b = numpyro.sample("b", dist.Normal(0.0, 0.7))
        phase = (jnp.asarray(X) @ w) / lengthscale
        phi = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1) / 2.0
        with numpyro.plate("row", 12):
            numpyro.sample("y", dist.Normal(phi @ beta + b, 0.1), obs=y)

    for seed in range(3):
        at = np.random.default_rng(seed)
        w, ll = at.normal(size=(2, 4)), at.normal()
        beta, b = at.normal(size=8), at.normal()
        ours_at = {
            f"{root}.rff.frequencies": w,
            f"{root}.rff.log_lengthscale": ll,
            f"{root}.readout.weight": beta[None],
            f"{root}.readout.bias": np.array([b]),
        }
        theirs_at = {"w": w, "lengthscale": np.exp(ll), "beta": beta, "b": b}
        ours_at, theirs_at = jax.tree.map(jnp.float32, (ours_at, theirs_at))
        one = log_density(handlers.seed(ours, 0), (), {}, ours_at)[0]
        other = log_density(by_hand, (), {}, theirs_at)[0]
        # Of the logarithm of the lengthscale, hence the Jacobian exp(ll).
        np.testing.assert_allclose(one, other + ll, rtol=2e-4)


class _Powers:
    """Any callable with an integer `out_features` will do."""

    out_features = 2

    def __call__(self, x):
        return jnp.stack([x[0], x[0] ** 2])


def test_features_of_the_users_own_and_places_that_ask_for_a_width():
    net = RandomKitchenSinks.init(_Powers(), 1, key=KEY)
    expected = np.stack([X[:, 0], X[:, 0] ** 2], -1) @ np.asarray(net.readout.weight).T
    expected = expected + np.asarray(net.readout.bias)
    np.testing.assert_allclose(net(X), expected, rtol=1e-5, atol=1e-6)
    field = ConditionedINR.init(
        make_sinks(), conditioner_cls=FiLM, cond_dim=3, key=KEY, mode="input"
    )
    np.testing.assert_allclose(field(X, jnp.ones(3)), make_sinks()(X), rtol=1e-5)


@pytest.mark.wrong_types
def test_bad_input_is_named():
    for bad in (0.0, -1.0, np.inf, np.nan, None, True):
        with pytest.raises(ValueError, match=r"^lengthscale must be a positive number"):
            RBFFourierFeatures.init(2, 3, key=KEY, lengthscale=bad)
    for bad in (None, lambda x: x, 3):
        with pytest.raises(TypeError, match=r"rff must be .* integer `out_features`"):
            RandomKitchenSinks.init(bad, 1, key=KEY)


def hyper_features():
    net = eqx.nn.MLP(3, 2 * 5 + 5 + 1, 4, 1, key=KEY)
    return HyperFourierFeatures.init(
        parameter_net=net, in_features=2, n_features=5, cond_dim=3
    )


@pytest.mark.parametrize(
    ("make", "contexts"),
    [
        (lambda: RBFFourierFeatures.init(2, 5, key=KEY), ()),
        (hyper_features, (np.ones((12, 3), np.float32),)),
        (lambda: SIREN.init(2, 5, 1, depth=3, key=KEY), ()),
    ],
    ids=["RBFFourierFeatures", "HyperFourierFeatures", "SIREN"],
)
@pytest.mark.parametrize("batched", [False, True], ids=["", "vmap"])
def test_phases_keep_their_digits_on_a_gpu(make, contexts, batched):
    # The layers behind the phases are multiplied as JAX is configured to.
    call = jax.vmap(make()) if batched else make()
    program = str(jax.make_jaxpr(call)(X, *contexts))
    highest = "precision=(Precision.HIGHEST, Precision.HIGHEST)"
    assert program.count(highest) == 1
