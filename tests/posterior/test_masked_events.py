"""Masks inside an event: what is hidden is in no group, and no score counts it."""

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import stats

import pyrox_ppl as px

MASK = np.array([[True, True], [False, True], [True, False]])
ROW = np.array([True, False, True])
Y = np.where(MASK, 0.3, -1e6).astype(np.float32)
DRAWS = {"a": jnp.linspace(-1.0, 1.0, 60)}


def on_a_plate(y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 3):
        fn = dist.Normal(a, 0.5).expand([3, 2]).mask(MASK).to_event(1)
        numpyro.sample("y", fn, obs=y)


def whole(y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    fn = dist.Normal(a, 0.5).expand([3, 2]).mask(MASK).to_event(2)
    numpyro.sample("y", fn, obs=y)


def twice(y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 3), handlers.mask(mask=jnp.asarray(ROW)):
        fn = dist.Normal(a, 0.5).expand([3, 2]).mask(MASK).to_event(1)
        numpyro.sample("y", fn, obs=y)


@functools.cache
def tree_of(model):
    return px.to_datatree(DRAWS, y=jnp.asarray(Y), model=model)


@pytest.mark.parametrize(
    ("model", "seen"),
    [(on_a_plate, MASK), (whole, MASK), (twice, MASK & ROW[:, None])],
)
def test_hidden_elements_of_an_event_are_left_out(model, seen):
    tree = tree_of(model)
    np.testing.assert_array_equal(tree.observed_data["y"], Y[seen])
    assert tree.posterior_predictive["y"].shape == (1, 60, seen.sum())
    places = [v for n, v in tree.observed_data.coords.items() if n.startswith("y_")]
    found = {tuple(p.values) for p in places}
    assert {tuple(index) for index in np.nonzero(seen)} <= found
    scores = px.calibration(tree)
    predicted = tree.posterior_predictive["y"].values[0]
    spread = np.abs(predicted[:, None] - predicted[None]).mean((0, 1))
    by_hand = np.abs(predicted - Y[seen]).mean(0) - spread / 2
    np.testing.assert_allclose(scores.crps, by_hand, rtol=1e-4)


def test_the_density_stays_that_of_the_events():
    density = stats.norm.logpdf(0.3, np.asarray(DRAWS["a"])[:, None], 0.5)
    tree = tree_of(on_a_plate)
    assert tree.log_likelihood["y"].dims == ("chain", "draw", "row")
    by_hand = density * MASK.sum(1)
    np.testing.assert_allclose(tree.log_likelihood["y"][0], by_hand, rtol=1e-5)
    tree = tree_of(twice)
    by_hand = density * MASK.sum(1)[ROW]
    np.testing.assert_allclose(tree.log_likelihood["y"][0], by_hand, rtol=1e-5)


def test_calibration_of_nothing_says_so():
    def hidden(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 3), handlers.mask(mask=False):
            numpyro.sample("y", dist.Normal(a, 0.5), obs=y)

    tree = px.to_datatree(DRAWS, y=jnp.zeros(3), model=hidden)
    with pytest.raises(ValueError, match="no observation of 'y'"):
        px.calibration(tree)


def test_a_scalar_that_is_hidden_is_no_entry():
    def hidden(y=None, z=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a, 0.5).mask(False), obs=y)
        numpyro.sample("z", dist.Normal(a, 0.5), obs=z)

    tree = px.to_datatree(DRAWS, y=jnp.zeros(()), z=jnp.zeros(()), model=hidden)
    assert tree.observed_data["y"].shape == (0,)
    assert tree.log_likelihood["y"].shape == (1, 60, 0)
    by_hand = stats.norm.logpdf(0.0, DRAWS["a"], 0.5)
    np.testing.assert_allclose(tree.log_likelihood["z"][0], by_hand, rtol=1e-5)
