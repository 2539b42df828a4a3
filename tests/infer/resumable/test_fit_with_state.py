"""run_minibatches with layers of state and noise: a batch norm, and dropout."""

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.primitives import mutable

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI, MinibatchLoader, run_minibatches, run_svi

KEY = jax.random.key(0)
N = 32
X = np.float32(5.0 + 2.0 * np.random.default_rng(0).normal(size=(N, 2)))
Y = np.float32(X[:, :1] - 5.0)


class Net(eqx.Module):
    """A batch norm, dropout and a line."""

    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    line: eqx.nn.Linear

    def __init__(self, mode="ema"):
        self.norm = eqx.nn.BatchNorm(2, "rows", mode=mode, momentum=0.5)
        self.drop = eqx.nn.Dropout(0.5)
        self.line = eqx.nn.Linear(2, 1, key=KEY)

    def __call__(self, x, state, key):
        x, state = self.norm(x, state)
        return self.line(self.drop(x, key=key)), state


NET, START = eqx.nn.make_with_state(Net)()


def model(x, y=None, inference=False):
    with px.bayesianize(where="*.line.weight"):
        net = px.bind(NET, "net")
    net = eqx.nn.inference_mode(net, inference)
    held = mutable("state", {"now": START})
    keys = jax.random.split(numpyro.prng_key(), len(x))
    over_rows = jax.vmap(net, (0, None, 0), (0, None), axis_name="rows")
    f, new = over_rows(x, held["now"], keys)
    held["now"] = jax.lax.stop_gradient(new)
    f = numpyro.deterministic("f", f)
    with numpyro.plate("row", N, subsample_size=len(x)):
        numpyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)


GUIDE = AutoNormal(model)


def make(cls=SVI, particles=1):
    return cls(model, AutoNormal(model), optax.adam(0.01), Trace_ELBO(particles))


def fit(guide=None, **kwargs):
    guide = AutoNormal(model) if guide is None else guide
    svi = SVI(model, guide, optax.adam(0.01), Trace_ELBO())
    loader = MinibatchLoader((X, Y), 8, rng_key=KEY)
    return run_minibatches(svi, KEY, loader, 3, progress_bar=False, **kwargs)


OFF = {"inference": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fit") / "run"


@pytest.fixture(scope="module")
def fitted(path):
    return fit(GUIDE, held_out=(X, Y), held_out_kwargs=OFF, path=path)


def evaluate(result, **kwargs):
    """The held-out loss, with the state of the best epoch, by NumPyro's own loss."""
    values = result.params | result.state.mutable_state
    keys = [
        jax.random.split(k)[1] for k in jax.random.split(jax.random.split(KEY)[1], 16)
    ]

    @jax.jit
    @jax.vmap
    def losses(key):
        return Trace_ELBO().loss(key, values, model, GUIDE, X, Y, **kwargs)

    return losses(jax.numpy.stack(keys)).mean()


def test_held_out_data_have_keyword_arguments_of_their_own(fitted):
    ours = fitted.held_out[fitted.best_epoch]
    np.testing.assert_allclose(ours, evaluate(fitted, **OFF), rtol=1e-4)
    assert not np.allclose(ours, evaluate(fitted), rtol=0.05)  # dropout on


def test_the_running_statistics_are_those_of_the_batches(fitted):
    loader = MinibatchLoader((X, Y), 8, rng_key=KEY)
    batches = [
        b[0] for epoch in range(fitted.best_epoch + 1) for b in loader.epoch(epoch)
    ]
    mean = batches[0].mean(0)
    for batch in batches[1:]:
        mean = 0.5 * mean + 0.5 * batch.mean(0)
    state = fitted.state.mutable_state["state"]["now"]
    np.testing.assert_allclose(state.get(NET.norm.ema_state_index)[0], mean, rtol=1e-4)


def test_the_fit_predicts_at_rest_and_again_with_noise(fitted):
    tree = px.to_datatree(
        fitted, X, y=Y, guide=GUIDE, model=model, num_samples=7, inference=True
    )
    state = fitted.state.mutable_state["state"]["now"]
    mean, variance = map(np.asarray, state.get(NET.norm.ema_state_index))
    h = (X - mean) / np.sqrt(variance + 1e-5)
    weight = tree.posterior["net.line.weight"].values[0]
    f = np.einsum("skc,nc->snk", weight, h) + np.asarray(NET.line.bias)
    for source, kwargs in (
        (tree, {}),
        (
            {"net.line.weight": weight},
            {"params": {**fitted.params, "state": {"now": state}}},
        ),
    ):
        ours = px.predict(model, source, X, inference=True, sites=["f"], **kwargs)["f"]
        np.testing.assert_allclose(ours.mean, f.mean(0), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(ours.std, f.std(0), rtol=1e-3, atol=1e-3)
    noisy = px.predict(model, tree, X, sites=["f"])["f"]
    assert (noisy.std > 2.0 * f.std(0)).mean() > 0.5


def test_a_run_on_disk_continues_only_with_the_same_held_out_arguments(path, fitted):
    again = fit(held_out=(X, Y), held_out_kwargs=OFF, path=path)
    np.testing.assert_array_equal(again.held_out, fitted.held_out)
    states = (fit.state.mutable_state for fit in (again, fitted))
    jax.tree.map(np.testing.assert_array_equal, *states)
    with pytest.raises(ValueError, match="held_out_kwargs"):
        fit(held_out=(X, Y), path=path)


def test_held_out_arguments_need_held_out_data():
    with pytest.raises(ValueError, match="held_out is absent"):
        fit(held_out_kwargs=OFF)


def by_minibatches(particles):
    loader = MinibatchLoader((X, Y), 8, rng_key=KEY)
    run_minibatches(make(particles=particles), KEY, loader, 1)


RUNS = {
    "minibatches": lambda n, path: by_minibatches(n),
    "svi": lambda n, path: run_svi(make(particles=n), KEY, 3, X, Y, path=path),
    "compiled": lambda n, path: make(CompiledSVI, n).run(KEY, 3, X, Y),
}


@pytest.mark.filterwarnings("ignore:mutable state is currently ignored")
@pytest.mark.parametrize("how", RUNS)
def test_several_particles_would_lose_the_state(how, tmp_path):
    with pytest.raises(ValueError, match=r"\['state'\].*num_particles=3.*never move"):
        RUNS[how](3, tmp_path / "run")


def test_every_way_to_run_leaves_the_same_state(tmp_path):
    plain = make().run(KEY, 5, X, Y, progress_bar=False)
    compiled = make(CompiledSVI)
    for ours in (
        compiled.run(KEY, 5, X, Y, progress_bar=False),
        run_svi(make(), KEY, 5, X, Y, path=tmp_path / "run", progress_bar=False),
    ):
        np.testing.assert_allclose(ours.losses, plain.losses, rtol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            ours.state.mutable_state,
            plain.state.mutable_state,
        )
    # NumPyro's own evaluation would have the state at the start, which is no state.
    loss = compiled.evaluate(plain.state, X, Y, inference=True)
    values = plain.params | plain.state.mutable_state
    key = jax.random.split(plain.state.rng_key)[1]
    by_hand = Trace_ELBO().loss(
        key, values, model, compiled.guide, X, Y, inference=True
    )
    np.testing.assert_allclose(loss, by_hand, rtol=1e-5)
    assert loss < 1e3
