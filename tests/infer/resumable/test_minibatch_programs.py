"""The programs of run_minibatches: its steps by hand, compiled once, never stale."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from compilations import compilations
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI, MinibatchLoader, init_to_stored
from pyrox_ppl.infer import run_minibatches as run
from pyrox_ppl.infer.resumable import _epochs, _loop
from pyrox_ppl.nn import FiLM

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(76, 1)).astype(np.float32)
Y = (1.0 + 0.7 * X).astype(np.float32)
FILM = FiLM.init(1, 1, key=KEY)
NOISE = {"std": 0.5}


def loader(y=Y):
    return MinibatchLoader((X, y), 4, rng_key=jax.random.key(9))


DATA = loader()


def model(x, y, offset=0.0):
    with px.bayesianize():
        mean = FILM(x, x)
    with numpyro.plate("row", DATA.num_rows, subsample_size=len(x)):
        normal = dist.Normal(mean + offset, NOISE["std"])
        numpyro.sample("y", normal.to_event(1), obs=y)


def make(cls=SVI, guide=AutoNormal, loss=TraceMeanField_ELBO):
    guide = guide(model, init_loc_fn=init_to_stored, init_scale=0.01)
    return cls(model, guide, optax.adam(0.01), loss())


def fit(svi, epochs=2, data=DATA, **kwargs):
    return run(svi, KEY, data, epochs, progress_bar=False, **kwargs)


def by_hand(svi, epochs=2, **kwargs):
    """The losses and params of a loop over the same batches."""
    state, losses = svi.init(jax.random.split(KEY)[0], X[:4], Y[:4], **kwargs), []
    step = jax.jit(lambda state, batch: svi.update(state, *batch, **kwargs))
    for epoch in range(epochs):
        for batch in DATA.epoch(epoch):
            state, loss = step(state, batch)
            losses.append(loss)
    return np.array(losses), svi.get_params(state)


@pytest.fixture(scope="module", params=[SVI, CompiledSVI])
def fitted(request):
    svi = make(request.param)
    return svi, fit(svi)


@pytest.fixture(scope="module")
def expected():
    return by_hand(make())


def assert_same(result, expected):
    losses, params = expected
    np.testing.assert_allclose(result.losses, losses, rtol=1e-4)
    for name, value in params.items():
        np.testing.assert_allclose(result.params[name], value, rtol=1e-3, atol=1e-5)


def test_the_steps_are_those_of_a_loop_by_hand(fitted, expected):
    assert DATA.steps_per_epoch % _epochs._MOST_STEPS not in (0, 1)
    assert_same(fitted[1], expected)


@pytest.mark.parametrize("most", [("_MOST_BYTES", 1), ("_MOST_STEPS", 5)])
def test_how_many_steps_share_a_call_decides_nothing(monkeypatch, expected, most):
    monkeypatch.setattr(_epochs, *most)
    assert_same(fit(make(), segment=7), expected)


def test_another_run_compiles_nothing_and_gives_the_same_bits(fitted):
    svi, result = fitted
    with compilations() as names:
        again = fit(svi)
    assert not names
    np.testing.assert_array_equal(again.losses, result.losses)


def test_a_state_gives_its_memory_to_the_next_and_the_best_is_kept(monkeypatch, fitted):
    states, commit = [], _loop._InMemory.commit

    def keep(self, state, *rest):
        states.append(state)
        return commit(self, state, *rest)

    monkeypatch.setattr(_loop._InMemory, "commit", keep)
    svi, other = fitted
    own = {n: v + 0.5 for n, v in other.params.items() if n.endswith("_auto_loc")}
    before = jax.tree.map(np.array, own)
    rising = fit(svi, 3, held_out=(X, Y + 100.0), init_params=own)
    assert rising.best_epoch < 2
    jax.tree.map(np.testing.assert_array_equal, own, before)
    gone = [[leaf.is_deleted() for leaf in jax.tree.leaves(s)] for s in states]
    lasts = [any(leaves[: len(leaves) // 2]) for leaves in gone]
    assert lasts == [True, True, False]
    alone = fit(svi, rising.best_epoch + 1, init_params=own)
    np.testing.assert_array_equal(alone.losses, rising.losses[: len(alone.losses)])
    jax.tree.map(np.testing.assert_array_equal, rising.params, alone.params)


def test_what_the_model_reads_is_never_stale(fitted, monkeypatch):
    svi, result = fitted
    shifted = fit(svi, offset=3.0)
    assert_same(shifted, by_hand(make(), offset=3.0))
    monkeypatch.setitem(NOISE, "std", 2.0)
    assert_same(fit(svi), by_hand(make()))
    monkeypatch.undo()
    monkeypatch.setattr(svi, "loss", Trace_ELBO())
    assert_same(fit(svi), by_hand(make(loss=Trace_ELBO)))
    monkeypatch.undo()
    np.testing.assert_array_equal(fit(svi).losses, result.losses)


def test_a_model_that_reads_another_loader_has_another_program(monkeypatch):
    def repeated(times):  # all batches are the same
        rows = tuple(np.tile(array[:1], (times, 1)) for array in (X, Y))
        return MinibatchLoader(rows, 4, rng_key=KEY)

    svi, longer = make(), repeated(152)
    before = fit(svi, 1, repeated(76))
    monkeypatch.setitem(globals(), "DATA", longer)
    after = fit(svi, 1, longer)
    # The likelihood of a batch counts twice.
    assert after.losses[0] > 1.5 * before.losses[0] > 0.0


def test_a_subclass_and_a_guide_that_cannot_begin_compiled_run_as_they_define():
    class Doubled(SVI):
        def update(self, state, *args, **kwargs):
            state, loss = super().update(state, *args, **kwargs)
            return state, 2.0 * loss

    plain, doubled = fit(make(), 1), fit(make(Doubled), 1)
    np.testing.assert_allclose(doubled.losses, 2.0 * plain.losses, rtol=1e-4)
    dense = fit(make(guide=AutoMultivariateNormal, loss=Trace_ELBO), 1)
    assert np.isfinite(dense.losses).all()
