"""Every crossing as a tree: of draws, of other data, of a run, of a fit."""

import numpy as np
import pytest
from crossing_runs import (
    CLOSE,
    FITTED,
    KEY,
    NUMBER,
    USUAL,
    check_noise,
    check_tree,
    draws_in,
    over,
    own,
    state_of,
    state_of_run,
)
from scipy import stats

import pyrox_ppl as px

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion
# A positive site in the tree of a run is in test_datatree.py; the tree of a fit of a
# convolution in infer/optim/test_ivon_crossings.py.
RUN = ("state-normal", "walk-normal")
FITS = ("learned-normal", "state-normal", "noisy-fan_in")


@over(often=USUAL)
def test_the_tree_of_draws(own):
    check_tree(own, own.tree, own.crossing.x)
    for name in own.crossing.latent():
        np.testing.assert_array_equal(own.tree.posterior[name], own.by_chain[name])


@over(often=("mlp-NonCentered", "plate-hierarchical", "convolution-normal"))
def test_the_axes_of_parameters_are_named(own):
    for path in own.crossing.kind.fan_in.keys() - set(own.crossing.kind.learned):
        decentred = f"net.{path}_decentered" in own.crossing.latent()
        for name in (f"net.{path}", *([f"net.{path}_decentered"] * decentred)):
            dims = own.tree.posterior[name].dims
            assert len(set(dims)) == len(dims)
            assert ("group" in dims) == bool(own.crossing.kind.groups)
            if own.crossing.kind.groups:
                assert dims[2] == "group"
                assert own.tree.posterior[name].sizes["group"] == 2
        module, _, leaf = f"net.{path}".rpartition(".")
        shape = own.crossing.stored()[path].shape
        dims = own.tree.posterior[f"net.{path}"].dims
        if leaf == "weight" and len(shape) == 2:
            assert dims[-2:] == (f"{module}.out", f"{module}.in")


@over(
    often=("plate-hierarchical", "learned-hierarchical", "state-normal", "walk-normal")
)
def test_draws_on_other_data(own):
    new_x, moved = own.crossing.new_x, own.crossing.x + np.float32(0.25)
    for tree, x in ((own.tree_on_new, new_x), (own.tree_of(moved), moved)):
        check_tree(own, tree, x)
        np.testing.assert_array_equal(tree["constant_data"]["x"], x)
    again = px.to_datatree(
        own.tree, new_x, y=own.crossing.y_at(new_x), model=own.crossing.model
    )
    check_tree(own, again, new_x)


@over(
    often=(
        *("plate-hierarchical", "ties-normal", "learned-hierarchical"),
        *("state-normal", "gru-hierarchical", "convolution-normal"),
    )
)
def test_predictions_and_prior(own):
    new_x = own.crossing.new_x
    tree = own.tree_of(
        own.crossing.x, predictions=(new_x,), num_prior_samples=NUMBER, rng_key=KEY
    )
    f = own.f(new_x)
    check_noise(draws_in(tree, "predictions")["y"], f)
    np.testing.assert_allclose(draws_in(tree, "predictions")["f"], f, **CLOSE)
    np.testing.assert_array_equal(tree["predictions_constant_data"]["x"], new_x)
    prior = draws_in(tree, "prior")
    assert set(prior) == own.crossing.latent() | own.crossing.deterministic()
    for site in own.crossing.latent():
        assert len(np.unique(prior[site].reshape(NUMBER, -1)[:, 0])) == NUMBER
    f = np.stack([hand.f for hand in own.hands(own.crossing.x, prior)])
    np.testing.assert_allclose(prior["f"], f, **CLOSE)
    check_noise(draws_in(tree, "prior_predictive")["y"], f)


@over(often=RUN)
def test_the_tree_of_a_run(own):
    tree = px.to_datatree(own.mcmc, own.crossing.x, y=own.crossing.y)
    state = state_of_run(own)
    hands = check_tree(own, tree, own.crossing.x, params={}, state=state)
    samples = own.mcmc.get_samples(group_by_chain=True)
    for name in own.crossing.latent():
        np.testing.assert_array_equal(tree.posterior[name], samples[name])
    assert len({hand.log_joint for hand in hands}) > 1


@over(often=FITS)
def test_the_tree_of_a_fit(own):
    params, state = own.fit.params, state_of(own.fit)
    hands = check_tree(own, own.fitted, own.crossing.x, params=params, state=state)
    draws = draws_in(own.fitted)
    density = np.zeros(FITTED)
    for site in own.crossing.latent():
        positive = site.endswith("scale")
        u = np.asarray(draws[site], np.float64)
        u = (np.log(u) if positive else u).reshape(FITTED, -1)
        loc, scale = (np.ravel(params[f"{site}_auto_{k}"]) for k in ("loc", "scale"))
        density += stats.norm.logpdf(u, loc, scale).sum(1)
    expected = [h.log_joint + h.jacobian for h in hands] - density
    weights = own.fitted["sample_stats"]["log_weight"].values.ravel()
    np.testing.assert_allclose(weights, expected, rtol=2e-5, atol=0.05)
    np.testing.assert_array_equal(
        own.fitted["optimization"]["loss"], np.asarray(own.fit.losses)
    )


@over(often=("learned-normal", "state-normal"))
def test_a_fit_on_other_data(own):
    x, params = own.crossing.new_x, own.fit.params
    tree = px.to_datatree(
        own.fitted, x, y=own.crossing.y_at(x), model=own.crossing.model
    )
    check_tree(own, tree, x, params=params, state=state_of(own.fit))
