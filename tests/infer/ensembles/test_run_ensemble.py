"""run_ensemble: every member is a fit of its own, from a start of its own."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from compilations import compilations
from infer.ensembles.members import (
    KEY,
    LOADER,
    MEMBERS,
    MODEL,
    NET,
    STEPS,
    X,
    Y,
    assert_member,
    keys_of,
    make,
    model_of,
    run,
    svi_of,
)
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoNormal,
)
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl import infer

pytestmark = pytest.mark.rank_promotion


def flat(model, **kwargs):
    return infer.AutoFlatNormal(model, **kwargs)


@pytest.mark.parametrize(
    "make_guide",
    [
        AutoNormal,
        *(
            pytest.param(make_guide, marks=pytest.mark.slow)
            for make_guide in (AutoDelta, AutoDiagonalNormal, flat)
        ),
    ],
)
def test_each_member_is_a_separate_fit_of_a_module_made_anew(make_guide):
    svi = svi_of(make_guide(MODEL))
    fit = run(svi, make=make)
    again = run(svi, make=make)
    np.testing.assert_array_equal(fit.losses, again.losses)
    for member in range(MEMBERS):
        make_key, run_key = keys_of(member)
        model = model_of(make(make_key))
        guide = make_guide(model, init_loc_fn=infer.init_to_stored)
        alone = svi_of(guide, model, make_svi=infer.CompiledSVI)
        alone = alone.run(run_key, STEPS, X, y=Y, progress_bar=False)
        assert_member(fit, member, alone)
    assert np.ptp(fit.losses[:, 0]) > 1.0
    assert fit.gradient_evaluations == MEMBERS * STEPS
    assert fit.seconds > 0
    draws = svi.guide.median({n: v[1] for n, v in fit.params.items()})
    assert draws["net.layers.0.weight"].shape == (4, 1)


def test_without_make_members_start_at_draws_from_the_prior():
    model = model_of(NET, prior_std=3.0)
    fit = run(svi_of(AutoDelta(model), model), members=400, steps=1)
    start = fit.params["net.layers.0.weight_auto_loc"]
    assert start.shape == (400, 4, 1)
    assert abs(float(start.std()) - 3.0) < 0.2


def test_the_noise_of_a_non_centred_prior_starts_where_it_gives_the_array():
    def prior(parameter):
        return px.priors.NonCentered(dist.Normal(0.5, 2.0))

    model = model_of(NET, prior=prior)
    fit = run(svi_of(AutoDelta(model), model), make=make, steps=1)
    for member in range(MEMBERS):
        net = make(keys_of(member)[0])
        noise = fit.params["net.layers.0.weight_decentered_auto_loc"][member]
        expected = (net.layers[0].weight - 0.5) / 2.0
        np.testing.assert_allclose(noise, expected, atol=0.011)  # one step of Adam


def test_learned_parameters_start_anew_and_constants_stay():
    def model(x, y=None):
        with px.bayesianize(where="*layers.1*"), px.learn(where="*layers.0.weight"):
            net = px.bind(NET, "net")
        numpyro.deterministic("constant", net.layers[0].bias)
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.1), obs=y)

    svi = svi_of(AutoDelta(model), model)
    fit = run(svi, make=make, steps=1)
    for member in range(MEMBERS):
        net = make(keys_of(member)[0])
        start = fit.params["net.layers.0.weight"][member]
        np.testing.assert_allclose(start, net.layers[0].weight, atol=0.011)
    tree = px.to_datatree(fit, X, y=Y, guide=svi.guide)
    bias = NET.layers[0].bias
    np.testing.assert_array_equal(tree.posterior["constant"][2, 0], bias)


def test_a_dictionary_of_modules_for_two_roots_one_under_a_scope():
    def model(x, y=None):
        with px.scope("left"), px.bayesianize():
            left = px.bind(NET, "net")
        with px.bayesianize():
            right = px.bind(NET, "right")
        mean = jax.vmap(left)(x)[:, 0] + jax.vmap(right)(x)[:, 0]
        numpyro.sample("y", dist.Normal(mean, 0.1).to_event(1), obs=y)

    def both(key):
        return {"left.net": make(key), "right": make(jax.random.fold_in(key, 1))}

    fit = run(svi_of(AutoDelta(model), model), make=both, steps=1)
    for name in ("left.net", "right"):
        own = both(keys_of(2)[0])[name]
        start = fit.params[f"{name}.layers.0.weight_auto_loc"][2]
        np.testing.assert_allclose(start, own.layers[0].weight, atol=0.011)
    with pytest.raises(ValueError, match=r"modules \['left.net', 'right'\]"):
        run(svi_of(AutoDelta(model), model), make=make)


def test_a_list_of_guides_and_a_guide_by_hand():
    guide = AutoGuideList(MODEL)
    hide = numpyro.handlers.block
    guide.append(AutoDelta(hide(MODEL, hide=["net.layers.1.bias"])))
    guide.append(AutoNormal(hide(MODEL, expose=["net.layers.1.bias"])))
    fit = run(svi_of(guide), make=make)
    assert fit.params["net.layers.1.bias_auto_scale"].shape == (MEMBERS, 1)

    def model(y=None):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def by_hand(y=None):
        numpyro.sample("mean", dist.Delta(numpyro.param("loc", jnp.array(0.0))))

    locs = jnp.array([-1.0, 0.0, 2.0])
    svi = svi_of(by_hand, model)
    fit = run(svi, jnp.array(1.0), init_params={"loc": locs}, steps=1)
    np.testing.assert_allclose(fit.params["loc"], locs, atol=0.011)
    with pytest.raises(ValueError, match="start at the same point"):
        run(svi, jnp.array(1.0))


def test_the_mode_of_a_linear_regression_is_that_of_every_member():
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)

    x = jnp.stack([X[:, 0], jnp.ones(12)], 1)
    svi = SVI(model, AutoDelta(model), Adam(0.1), Trace_ELBO())
    y = Y + X[:, 0]
    fit = infer.run_ensemble(svi, KEY, 4, 800, x, y=y, progress_bar=False)
    mode = np.linalg.solve(x.T @ x / 0.25 + np.eye(2), x.T @ y / 0.25)
    np.testing.assert_allclose(fit.params["w_auto_loc"], np.tile(mode, (4, 1)), 1e-4)
    diagnosis = px.diagnose(px.to_datatree(fit, x, y=y, guide=svi.guide))
    assert diagnosis.failed == ("members",)


def test_a_second_run_compiles_nothing_and_a_block_of_members_is_the_same_fit():
    held = make  # within more objects than Python's stack is deep
    for _ in range(sys.getrecursionlimit()):
        held = [held]

    def unwrap_and_make(key):
        found = held
        while isinstance(found, list):
            (found,) = found
        return found(key)

    loss = TraceMeanField_ELBO()
    svi = svi_of(AutoNormal(MODEL), loss=loss, make_svi=infer.CompiledSVI)
    other = X + 1.0
    whole = run(svi, make=unwrap_and_make)
    with compilations() as names:
        run(svi, make=unwrap_and_make)
        run(svi, other, y=Y, make=unwrap_and_make)
    assert not names
    parts = run(svi, make=unwrap_and_make, batch_size=2)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-4)


def test_each_member_sees_minibatches_in_an_order_of_its_own():
    svi = svi_of(AutoNormal(MODEL))
    fit = run(svi, LOADER, make=make, size=12)
    again = run(svi, LOADER, make=make, size=12, segment=5)
    np.testing.assert_allclose(again.losses, fit.losses, rtol=1e-5)
    member = MEMBERS - 1
    make_key, run_key = keys_of(member)
    model = model_of(make(make_key))
    guide = AutoNormal(model, init_loc_fn=infer.init_to_stored)
    alone = svi_of(guide, model, make_svi=infer.CompiledSVI)
    update = jax.jit(alone.update, static_argnums=3)
    order = jax.random.fold_in(LOADER.rng_key, member)
    loader = dataclasses.replace(LOADER, rng_key=order)
    state, losses = None, []
    for epoch in range(STEPS // 3):
        for x, y in loader.epoch(epoch):
            state = alone.init(run_key, x, y, 12) if state is None else state
            state, loss = update(state, x, y, 12)
            losses.append(loss)
    np.testing.assert_allclose(fit.losses[member], losses, rtol=1e-3)
    with pytest.raises(ValueError, match="holds all positional arguments"):
        run(svi, LOADER, Y, make=make)


def test_state_of_layers_moves_in_every_member():
    def model(x, y=None):
        state = numpyro.primitives.mutable("mean", {"value": jnp.zeros(())})
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        state["value"] = 0.9 * state["value"] + 0.1 * w
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(w * x[:, 0] + state["value"], 0.1), obs=y)

    svi = svi_of(AutoDelta(model), model)
    fit = run(svi)
    moved = fit.state.mutable_state["mean"]["value"]
    assert moved.shape == (MEMBERS,)
    assert len(set(moved.tolist())) == MEMBERS
