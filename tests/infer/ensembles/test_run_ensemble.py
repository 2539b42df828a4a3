"""run_ensemble: every member is a fit of its own, and the run survives a kill."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from compilations import compilations
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
from pyrox_ppl.infer.resumable import _store

pytestmark = pytest.mark.rank_promotion
KEY, MEMBERS, STEPS = jax.random.key(1), 3, 12
X = jnp.linspace(-1.0, 1.0, 12)[:, None]
Y = X[:, 0] ** 2
ROOT = Path(__file__).parents[3]


def make(key):
    return eqx.nn.MLP(1, 1, 4, 1, jnp.tanh, key=key)


NET = make(jax.random.key(0))


def model_of(net, **block):
    def model(x, y=None, size=None):
        with px.bayesianize(**block):
            bound = px.bind(net, "net")
        with numpyro.plate("row", size or len(x), subsample_size=len(x)):
            numpyro.sample("y", dist.Normal(jax.vmap(bound)(x)[:, 0], 0.1), obs=y)

    return model


MODEL = model_of(NET)


def svi_of(guide, model=MODEL, loss=None, make_svi=SVI):
    return make_svi(model, guide, Adam(0.01), loss or Trace_ELBO())


def run(svi, *args, members=MEMBERS, steps=STEPS, **kwargs):
    given = args or (X,)
    kwargs = ({} if args else {"y": Y}) | {"progress_bar": False} | kwargs
    return infer.run_ensemble(svi, KEY, members, steps, *given, **kwargs)


def keys_of(member):
    """The keys of a member, as the documentation has them."""
    make_key, run_key = jax.random.split(jax.random.split(KEY, MEMBERS)[member])
    return make_key, run_key


def assert_member(fit, member, alone, **close):
    close = {"rtol": 2e-4, "atol": 1e-5} | close
    np.testing.assert_allclose(fit.losses[member], alone.losses, **close)
    for name, value in alone.params.items():
        np.testing.assert_allclose(fit.params[name][member], value, **close)


def flat(model, **kwargs):
    return infer.AutoFlatNormal(model, **kwargs)


@pytest.mark.parametrize(
    "make_guide",
    [
        AutoDelta,
        AutoNormal,
        pytest.param(flat, marks=pytest.mark.slow),
        AutoDiagonalNormal,
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
        alone = svi_of(guide, model).run(run_key, STEPS, X, y=Y, progress_bar=False)
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
    with pytest.raises(ValueError, match="members start at the same point"):
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


def test_a_second_run_of_the_same_shapes_compiles_nothing():
    svi = svi_of(AutoNormal(MODEL), loss=TraceMeanField_ELBO())
    other = X + 1.0
    run(svi, make=make)
    with compilations() as names:
        run(svi, make=make)
        run(svi, other, y=Y, make=make)
    assert not names


def test_a_block_of_members_at_a_time_is_the_same_fit():
    svi = svi_of(AutoNormal(MODEL), make_svi=infer.CompiledSVI)
    whole, parts = run(svi, make=make), run(svi, make=make, batch_size=2)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-4)


LOADER = infer.MinibatchLoader(
    (np.asarray(X), np.asarray(Y)), 4, rng_key=jax.random.key(5)
)


def test_each_member_sees_minibatches_in_an_order_of_its_own():
    svi = svi_of(AutoNormal(MODEL))
    fit = run(svi, LOADER, make=make, size=12)
    again = run(svi, LOADER, make=make, size=12, segment=5)
    np.testing.assert_allclose(again.losses, fit.losses, rtol=1e-5)
    for member in range(MEMBERS):
        make_key, run_key = keys_of(member)
        model = model_of(make(make_key))
        alone = svi_of(AutoNormal(model, init_loc_fn=infer.init_to_stored), model)
        order = jax.random.fold_in(LOADER.rng_key, member)
        loader = dataclasses.replace(LOADER, rng_key=order)
        state, losses = None, []
        for epoch in range(STEPS // 3):
            for x, y in loader.epoch(epoch):
                state = alone.init(run_key, x, y, 12) if state is None else state
                state, loss = alone.update(state, x, y, 12)
                losses.append(loss)
        np.testing.assert_allclose(fit.losses[member], losses, rtol=1e-3)
    with pytest.raises(ValueError, match="holds all positional arguments"):
        run(svi, LOADER, Y, make=make)


def job(path, kind="whole"):
    """A run that commits every third step."""
    svi = svi_of(AutoNormal(MODEL))
    data = {"whole": (X,), "batches": (LOADER,)}[kind]
    more = {"whole": {"y": Y}, "batches": {"size": 12}}[kind]
    return run(svi, *data, make=make, path=path, segment=3, **more)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one[:3]), jax.tree.leaves(other[:3]), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "kind", ["whole", pytest.param("batches", marks=pytest.mark.slow)]
)
def test_a_killed_run_continues_bit_for_bit(kind, tmp_path, monkeypatch):
    reference = job(tmp_path / "whole", kind)
    commits = []

    def reached(point):
        commits.append(point)
        if commits.count("manifest") == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_store, "reached", reached)
        with pytest.raises(Killed):
            job(tmp_path / "run", kind)
    continued = job(tmp_path / "run", kind)
    assert_same(continued, reference)
    assert_same(job(tmp_path / "run", kind), reference)
    svi = svi_of(AutoNormal(MODEL))
    with pytest.raises(ValueError, match="num_members was 3 and is 4"):
        run(svi, make=make, path=tmp_path / "whole", segment=3, members=4)


@pytest.mark.slow
def test_another_process_continues_bit_for_bit(tmp_path):
    reference = job(tmp_path / "whole")
    code = (
        "from infer.ensembles.test_run_ensemble import *\n"
        "count = []\n"
        "def reached(point):\n"
        "    count.append(point)\n"
        "    if count.count('renamed') == 3: os._exit(7)\n"
        "_store.reached = reached\n"
        f"job({str(tmp_path / 'run')!r})\n"
    )
    place = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": place},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr
    assert_same(job(tmp_path / "run"), reference)


@pytest.mark.slow
def test_two_devices_take_members_each():
    code = (
        "import numpyro; numpyro.set_host_device_count(2)\n"
        "from infer.ensembles.test_run_ensemble import *\n"
        "assert jax.device_count() == 2\n"
        "svi = svi_of(AutoNormal(MODEL))\n"
        "fit = run(svi, make=make, members=4)\n"
        "devices = fit.params['net.layers.0.weight_auto_loc'].sharding.device_set\n"
        "assert len(devices) == 2, devices\n"
        "few = run(svi, make=make, members=4, batch_size=1)\n"
        "np.testing.assert_allclose(few.losses, fit.losses, rtol=1e-4)\n"
        "px.to_datatree(fit, X, y=Y, guide=svi.guide, num_samples=5)\n"
        "print(fit.losses.tolist())\n"
    )
    place = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": place},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    losses = np.array(eval(done.stdout))
    here = run(svi_of(AutoNormal(MODEL)), make=make, members=4)
    np.testing.assert_allclose(losses, here.losses, rtol=1e-4)


def test_state_of_layers_moves_in_every_member():
    def model(x, y=None):
        state = numpyro.primitives.mutable("mean", lambda: {"value": jnp.zeros(())})
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        state["value"] = 0.9 * state["value"] + 0.1 * w
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(w * x[:, 0] + state["value"], 0.1), obs=y)

    svi = svi_of(AutoDelta(model), model)
    fit = run(svi)
    moved = fit.state.mutable_state["mean"]["value"]
    assert moved.shape == (MEMBERS,)
    assert len(set(moved.tolist())) == MEMBERS


def wider(key):
    return eqx.nn.MLP(1, 1, 5, 1, key=key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": 1}, "at least two members"),
        ({"steps": 0}, "num_steps must be a positive number"),
        ({"batch_size": 0}, "batch_size must be a positive number"),
        ({"make": wider}, r"shape \(4, 1\); the MLP that it returned has \(5, 1\)"),
        ({"make": lambda key: NET}, "members start at the same point"),
        ({"make": lambda key: {"nett": make(key)}}, r"returned the modules \['nett'\]"),
        ({"make": lambda key: make(key).layers[0]}, "has none of that name"),
        ({"init_params": {"a": jnp.zeros(2)}}, "leading axis of the 3 members"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        run(svi_of(AutoDelta(MODEL)), **({"make": make} | change))


def test_more_bad_input():
    with pytest.raises(TypeError, match="rng_key must be a PRNG key"):
        infer.run_ensemble(svi_of(AutoDelta(MODEL)), 3, 3, 3, X, y=Y)

    def plain(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(w * x[:, 0], 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match="reads no parameter that is a site"):
        run(svi_of(AutoDelta(plain), plain), make=make)

    def discrete(x, y=None):
        numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(x[:, 0], 1.0).to_event(1), obs=y)

    with pytest.raises(NotImplementedError, match="discrete"):
        run(svi_of(AutoDelta(discrete), discrete))

    def impossible(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(w, 1.0).to_event(0), obs=jnp.nan)

    with pytest.raises(RuntimeError, match=r"members \[0, 1, 2\] start where"):
        run(svi_of(AutoDelta(impossible), impossible))
