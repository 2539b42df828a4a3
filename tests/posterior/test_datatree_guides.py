"""Draws of guides: those of the guide's posterior, whatever its call is."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.core import Tracer
from numpyro import handlers
from numpyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO
from numpyro.infer import autoguide as auto
from scipy import stats

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI

KEY = jax.random.key(0)
GUIDE_KEY = jax.random.split(KEY)[1]
Y = jnp.array([0.5, 1.0, 2.5])


def model(y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("row", 3):
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def listed(model):
    guide = auto.AutoGuideList(model)
    guide.append(auto.AutoLaplaceApproximation(handlers.block(model, hide=["b"])))
    guide.append(auto.AutoNormal(handlers.block(model, hide=["a"])))
    return guide


def fit(guide, steps=60):
    svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
    return svi.run(KEY, steps, Y, progress_bar=False)


@pytest.mark.rank_promotion
@pytest.mark.parametrize("make", [auto.AutoLaplaceApproximation, listed])
def test_draws_of_a_laplace_approximation_are_of_its_posterior(make):
    guide = make(model)
    found = fit(guide)
    tree = px.to_datatree(found, Y, guide=guide, num_samples=50, rng_key=KEY)
    theirs = guide.sample_posterior(GUIDE_KEY, found.params, sample_shape=(50,))
    assert tree.attrs["point_estimate"] == 0
    np.testing.assert_allclose(tree.posterior["a"][0], theirs["a"], rtol=1e-5)
    assert tree.posterior["b"].shape == (1, 50)
    assert tree.posterior["b"].std() > 0.05
    assert "log_weight" not in tree.sample_stats  # its call has another density
    spread = px.predict(model, tree, sites=["y"])["y"].std
    assert (spread > 1.0).all()  # the noise alone has a spread of one


@pytest.mark.rank_promotion
def test_the_spread_of_a_laplace_approximation_is_that_by_hand():
    def normal(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 3):
            numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    guide = auto.AutoLaplaceApproximation(normal)
    svi = CompiledSVI(normal, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
    found = svi.run(KEY, 400, Y, progress_bar=False)
    draws = px.to_datatree(found, Y, guide=guide, num_samples=4000).posterior["a"]
    assert float(draws.mean()) == pytest.approx(4.0 / 4, abs=0.03)
    assert float(draws.std()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.rank_promotion
@pytest.mark.parametrize(
    "make", [auto.AutoDiagonalNormal, auto.AutoNormal, auto.AutoDAIS]
)
def test_a_guide_whose_call_is_its_posterior_draws_what_predictive_draws(make):
    guide = make(model)
    found = fit(guide, 5)
    tree = px.to_datatree(found, Y, guide=guide, num_samples=20, rng_key=KEY)
    theirs = Predictive(guide, params=found.params, num_samples=20)(GUIDE_KEY, Y)
    for name in ("a", "b"):
        np.testing.assert_allclose(tree.posterior[name][0], theirs[name], rtol=1e-4)
    # A guide that adds a factor to its density has none of its draws alone.
    assert ("log_weight" in tree.sample_stats) == (make is not auto.AutoDAIS)


def test_a_point_is_one_draw():
    guide = auto.AutoDelta(model)
    tree = px.to_datatree(fit(guide, 5), Y, guide=guide, num_samples=20)
    assert tree.posterior["a"].shape == (1, 1)
    assert tree.attrs["point_estimate"] == 1


def test_a_fit_without_latents_has_predictions_and_observations():
    def trained(y=None):
        loc = numpyro.param("loc", 0.0)
        with numpyro.plate("row", 3):
            numpyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    guide = auto.AutoNormal(trained)
    svi = CompiledSVI(trained, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    run = svi.run(KEY, 200, Y, progress_bar=False)
    tree = px.to_datatree(run, y=Y, model=trained, guide=guide)
    assert "posterior" not in tree.children
    np.testing.assert_array_equal(tree.observed_data["y"], Y)
    assert tree.posterior_predictive["y"].shape == (1, 1, 3)
    np.testing.assert_allclose(tree.params["loc"], Y.mean(), rtol=0.05)


def test_a_point_of_a_model_with_dropout_is_drawn_as_often_as_was_asked():
    def noisy(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        kept = jax.random.bernoulli(numpyro.prng_key(), 0.8)
        f = numpyro.deterministic("f", kept * a / 0.8)
        with numpyro.plate("row", 3):
            numpyro.sample("y", dist.Normal(f, 1.0), obs=y)

    guide, at = auto.AutoDelta(noisy), {"a_auto_loc": jnp.array(2.0)}
    tree = px.to_datatree(at, Y, guide=guide, num_samples=50)
    assert tree.attrs["point_estimate"] == 1
    assert np.all(tree.posterior["a"] == 2.0)
    found, number = np.unique(tree.posterior["f"], return_counts=True)
    np.testing.assert_allclose(found, [0.0, 2.5])
    assert stats.binomtest(number[1], 50, 0.8).pvalue > 1e-3


def test_a_guide_has_the_rows_of_its_model():
    data = jnp.linspace(-1.0, 1.0, 6)

    def local(y):
        with numpyro.plate("row", 6, subsample_size=2) as rows:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    def guide(y):
        loc = numpyro.param("loc", jnp.array(0.5))
        with numpyro.plate("row", 6, subsample_size=2):  # does not use the rows
            numpyro.sample("z", dist.Normal(loc, 0.1))

    tree = px.to_datatree(
        {"loc": jnp.array(0.5)}, data, guide=guide, model=local, num_samples=3
    )
    assert tree.posterior["z"].dims == ("chain", "draw", "row")
    assert tree.posterior["z"].shape == (1, 3, 6)
    assert tree.log_likelihood["y"].shape == (1, 3, 6)


@pytest.fixture(scope="module")
def of_normal():
    return fit(auto.AutoNormal(model), 5)


@pytest.mark.parametrize(
    "other",
    [
        auto.AutoMultivariateNormal,
        lambda model: auto.AutoNormal(model, prefix="other"),
        auto.AutoDelta,
    ],
)
def test_another_guide_than_the_trained_one_is_refused(of_normal, other):
    with pytest.raises(ValueError, match=r"of the guide have no trained|neither this"):
        px.to_datatree(of_normal, Y, guide=other(model), num_samples=3)


def test_a_parameter_of_a_guide_that_has_no_value_is_refused():
    def guide(y=None):
        loc = numpyro.param("loc", 0.0)
        numpyro.sample("a", dist.Normal(loc, numpyro.param("scale", 1.0)))

    def of_one(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"\['scale'\] of the guide have no trained"):
        px.to_datatree({"loc": jnp.array(5.0)}, Y[0], guide=guide, model=of_one)


@pytest.mark.parametrize(
    "make",
    [
        auto.AutoNormal,
        pytest.param(auto.AutoMultivariateNormal, marks=pytest.mark.slow),
    ],
)
def test_a_new_guide_with_the_trained_values_draws_what_the_trained_one_does(make):
    guide = make(model)
    params = fit(guide, 5).params
    trees = [
        px.to_datatree(params, Y, guide=of, num_samples=4)
        for of in (guide, make(model))
    ]
    np.testing.assert_array_equal(trees[0].posterior["a"], trees[1].posterior["a"])


@pytest.mark.rank_promotion
def test_a_model_that_hides_its_discrete_latent_is_asked_for():
    def mixture(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 3.0))
        with numpyro.plate("row", 3):
            z = numpyro.sample(
                "z", dist.Bernoulli(0.4), infer={"enumerate": "parallel"}
            )
            numpyro.sample("y", dist.Normal(a + 5.0 * z, 1.0), obs=y)

    blocked = handlers.block(mixture, hide=["z"])
    guide = auto.AutoNormal(blocked)
    svi = CompiledSVI(mixture, guide, numpyro.optim.Adam(0.05), TraceEnum_ELBO())
    found = svi.run(KEY, 3, Y, progress_bar=False)
    with pytest.raises(ValueError, match=r"hides the latent sites \['z'\]"):
        px.to_datatree(found, Y, guide=guide)
    with pytest.raises(ValueError, match=r"hides the latent sites \['z'\]"):
        px.to_datatree({"a": jnp.zeros(3)}, Y, model=handlers.seed(blocked, 0))
    tree = px.to_datatree(
        found, Y, guide=guide, model=mixture, num_samples=4, log_likelihood=["y"]
    )
    a, y = tree.posterior["a"].values[0][:, None], np.asarray(Y)
    parts = 0.6 * stats.norm.pdf(y, a) + 0.4 * stats.norm.pdf(y, a + 5.0)
    np.testing.assert_allclose(tree.log_likelihood["y"][0], np.log(parts), rtol=1e-4)


def test_a_program_takes_what_a_guide_learned_as_an_argument():
    """XLA evaluates constants while it compiles, slowly for an encoder of many rows."""
    traced = []

    def guide(y=None):
        loc = numpyro.param("loc", 0.0)
        traced.append(isinstance(loc, Tracer))
        a = numpyro.sample("a", dist.Normal(loc, 1.0))
        numpyro.sample("b", dist.LogNormal(a, 0.5))

    params = {"loc": jnp.array(0.3)}
    tree = px.to_datatree(params, Y, guide=guide, model=model, num_samples=3)
    assert "log_weight" in tree.sample_stats
    assert all(traced)
    assert len(traced) >= 3
