"""AutoSWAG under each run of ours: minibatches, held-out data, kills, members."""

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import SGD
from numpyro.primitives import mutable

import pyrox_ppl as px
from pyrox_ppl.infer import AutoSWAG, MinibatchLoader, run_minibatches, run_svi
from pyrox_ppl.infer.resumable import _store

pytestmark = pytest.mark.rank_promotion
KEY = jax.random.key(0)
ROWS, EPOCHS = 32, 4
X = np.float32(np.random.default_rng(0).normal(size=(ROWS, 2)))
Y = np.float32(np.sin(X[:, :1]))
NET = eqx.nn.MLP(2, 1, 3, 1, activation=jax.numpy.tanh, key=KEY)
LOADER = MinibatchLoader((X, Y), 8, rng_key=KEY)


def model(x, y=None):
    """Weights with a prior, on inputs less their running mean."""
    with px.bayesianize():
        net = px.bind(NET, "net")
    state = mutable("state", {"mean": jax.numpy.zeros(2)})
    f = jax.vmap(net)(x - state["mean"][None])
    state["mean"] = 0.9 * state["mean"] + 0.1 * x.mean(0)
    f = numpyro.deterministic("f", f)
    with numpyro.plate("row", ROWS, subsample_size=len(x)):
        numpyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)


def make():
    guide = AutoSWAG(model, rank=3, start=4)
    return SVI(model, guide, SGD(1e-3), Trace_ELBO())


def fit(**kwargs):
    return run_minibatches(make(), KEY, LOADER, EPOCHS, progress_bar=False, **kwargs)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def fitted():
    return fit()


def test_the_moments_are_those_of_the_steps_on_batches(fitted):
    svi = make()
    batches = [batch for epoch in range(EPOCHS) for batch in LOADER.epoch(epoch)]
    state = svi.init(jax.random.split(KEY)[0], *batches[0])
    update, seen = jax.jit(svi.update), []
    for batch in batches:
        state, _ = update(state, *batch)
        seen.append(state.mutable_state["auto_moments"]["last"])
    moments = fitted.params["auto_moments"]
    assert moments["count"] == len(seen[5:])
    for name, mean in moments["mean"].items():
        values = np.stack([np.asarray(u[name], np.float64) for u in seen[5:]])
        np.testing.assert_allclose(mean, values.mean(0), rtol=1e-4, atol=1e-6)
        spread = np.sqrt(moments["squares"][name] / len(values))
        np.testing.assert_allclose(spread, values.std(0), rtol=1e-2, atol=1e-6)
    # The model's own state goes with the moments.
    expected = state.mutable_state["state"]["mean"]
    found = fitted.state.mutable_state["state"]["mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_held_out_data_leave_the_moments_as_they_are(fitted):
    watched = fit(held_out=(X, Y))
    assert len(watched.held_out) == EPOCHS
    np.testing.assert_array_equal(watched.losses, fitted.losses)
    # Those that were collected until the best epoch.
    seen = (watched.best_epoch + 1) * LOADER.steps_per_epoch - 1
    assert watched.params["auto_moments"]["count"] == max(seen - 4, 0)
    if watched.best_epoch == EPOCHS - 1:
        assert_equal(watched.params, fitted.params)


def test_the_best_epoch_has_the_moments_until_then():
    """Targets of the other sign are predicted best before the net learns its own."""
    result = fit(held_out=(X, -20.0 * Y))
    assert result.best_epoch < EPOCHS - 1
    seen = (result.best_epoch + 1) * LOADER.steps_per_epoch - 1
    assert result.params["auto_moments"]["count"] == max(seen - 4, 0)


def test_a_killed_run_continues_bit_for_bit(tmp_path, monkeypatch, fitted):
    path, passed = tmp_path / "run", []

    def reached(point):
        passed.append(point)
        if passed.count("manifest") == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(_store, "reached", reached)
    with pytest.raises(KeyboardInterrupt):
        fit(path=path)
    monkeypatch.undo()
    resumed = fit(path=path)
    assert_equal(resumed.params, fitted.params)
    assert resumed.seconds > 0
    assert resumed.gradient_evaluations == EPOCHS * LOADER.steps_per_epoch
    # A finished run costs nothing more.
    assert fit(path=path).seconds == resumed.seconds


def test_a_resumable_run_on_all_data_is_numpyros(tmp_path):
    plain = make().run(KEY, 12, X, Y, progress_bar=False)
    ours = run_svi(make(), KEY, 12, X, Y, path=tmp_path / "run", progress_bar=False)
    assert_equal(ours.state.mutable_state, plain.state.mutable_state)
    assert ours.gradient_evaluations == 12
    assert ours.params["auto_moments"]["count"] == 7


def test_a_tree_has_the_trained_state_and_the_spread(fitted):
    guide = AutoSWAG(model, rank=3, start=4)
    tree = px.to_datatree(fitted, X, y=Y, guide=guide, num_samples=200)
    mean = np.asarray(fitted.state.mutable_state["state"]["mean"])
    weights = [tree.posterior[f"net.layers.{i}.weight"].values[0] for i in range(2)]
    biases = [tree.posterior[f"net.layers.{i}.bias"].values[0] for i in range(2)]
    h = np.tanh(np.einsum("skc,nc->snk", weights[0], X - mean) + biases[0][:, None])
    f = np.einsum("skc,snc->snk", weights[1], h) + biases[1][:, None]
    np.testing.assert_allclose(tree.posterior["f"].values[0], f, rtol=1e-3, atol=1e-4)
    for name in fitted.params["auto_moments"]["mean"]:
        assert (tree.posterior[name].values[0].std(0) > 0).any(), name
    assert tree.attrs["seconds"] == fitted.seconds
    assert tree.attrs["gradient_evaluations"] == fitted.gradient_evaluations


def test_members_of_an_ensemble_collect_as_one_by_one():
    """The moments of vectorised members are those of each alone (MultiSWAG)."""
    svi = make()
    keys = jax.random.split(KEY, 3)
    starts = [svi.init(key, X, Y) for key in keys]
    update = jax.jit(svi.update)
    stacked = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *starts)
    together = jax.jit(jax.vmap(lambda state: svi.update(state, X, Y)[0]))
    for _ in range(12):
        starts = [update(state, X, Y)[0] for state in starts]
        stacked = together(stacked)
    for member, alone in enumerate(starts):
        own = jax.tree.map(lambda leaf, m=member: leaf[m], stacked.mutable_state)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            own,
            alone.mutable_state,
        )
