"""run_minibatches: the scale of a batch, early stopping, schedules, and a kill."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI, MinibatchLoader, run_minibatches
from pyrox_ppl.infer.resumable import _store
from pyrox_ppl.nn import FiLM

KEY = jax.random.key(0)
N = 64
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 1)).astype(np.float32)
TRUE = 0.7
YS = (1.0 + TRUE * X + 0.5 * RNG.normal(size=X.shape)).astype(np.float32)
FILM = FiLM.init(1, 1, key=KEY)


class Died(BaseException):
    """What stands for the end of a process."""


def model(x, y):
    """Rows through a Bayesian conditioner: the weights global, the rows on a plate."""
    with px.bayesianize():
        mean = FILM(jnp.ones_like(x), x)
    with numpyro.plate("row", N, subsample_size=x.shape[0]):
        numpyro.sample("y", dist.Normal(mean, 0.5).to_event(1), obs=y)


def line(x, y):
    """A conjugate model: a line with a known noise."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("row", N, subsample_size=x.shape[0]):
        mean = w[0] + w[1] * x[:, 0]
        numpyro.sample("y", dist.Normal(mean, 0.5), obs=y[:, 0])


def make(model, optimiser, particles=1, cls=SVI):
    guide = AutoNormal(model)
    return cls(model, guide, optimiser, Trace_ELBO(num_particles=particles))


def loader(size=16):
    return MinibatchLoader((X, YS), size, rng_key=jax.random.key(9))


def fit(svi, epochs, **kwargs):
    kwargs = {"progress_bar": False} | kwargs
    return run_minibatches(svi, KEY, loader(), epochs, **kwargs)


@pytest.mark.parametrize("particles", [1, 3])
def test_the_loss_of_batches_is_unbiased_for_that_of_all_data(particles):
    svi = make(model, optax.adam(1e-2), particles, CompiledSVI)
    state = svi.init(KEY, X, YS)
    evaluate = jax.jit(lambda batch: svi.evaluate(state, *batch))
    whole = evaluate((X, YS))
    parts = [float(evaluate(batch)) for batch in loader().epoch(0)]
    # The same key, so the same weights: the mean over an epoch is the whole, exactly.
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-5)
    assert np.std(parts) > 1e-3 * abs(whole)


def test_a_step_holds_nothing_of_the_size_of_all_data():
    svi = make(model, optax.adam(1e-2), cls=CompiledSVI)
    batch = next(loader().epoch(0))
    state = svi.init(KEY, *batch)
    text = jax.jit(svi.update).lower(state, *batch).compile().as_text()
    assert "[16" in text
    assert f"[{N}" not in text


def test_it_finds_the_posterior_of_a_conjugate_model():
    schedule = optax.cosine_decay_schedule(0.05, 4 * 150, alpha=0.01)
    svi = make(line, optax.adam(schedule), particles=4)
    result = fit(svi, 150)
    design = np.concatenate([np.ones_like(X), X], 1)
    precision = np.eye(2) + design.T @ design / 0.25
    mean = np.linalg.solve(precision, design.T @ YS[:, 0] / 0.25)
    std = np.diag(precision) ** -0.5  # of the mean-field optimum
    np.testing.assert_allclose(result.params["w_auto_loc"], mean, atol=0.03)
    np.testing.assert_allclose(result.params["w_auto_scale"], std, rtol=0.15)
    assert result.losses.shape == (4 * 150,)
    assert result.best_epoch == 149


def test_early_stopping_returns_the_epoch_of_least_held_out_loss():
    # Warm restarts; the second begins with a rate that spoils what the first found.
    cycles = [(0.05, 40), (5.0, 400)]
    schedule = optax.sgdr_schedule(
        [
            {"init_value": r, "peak_value": r, "decay_steps": n, "warmup_steps": 0}
            for r, n in cycles
        ]
    )
    svi = make(line, optax.adam(schedule))
    held_out = MinibatchLoader((X, YS), 32, rng_key=KEY, shuffle=False)
    result = fit(svi, 100, held_out=held_out, patience=3)
    losses = result.held_out
    assert 10 <= len(losses) < 20
    assert result.best_epoch == np.argmin(losses) == len(losses) - 4
    again = fit(make(line, optax.adam(schedule)), int(result.best_epoch) + 1)
    jax.tree.map(np.testing.assert_array_equal, result.params, again.params)
    # Its tree knows that, and the tree of a run whose last epoch is best does not.
    trees = [
        px.to_datatree(r, X, YS, guide=svi.guide, num_samples=2)
        for r in (result, again)
    ]
    known = [(t.attrs.get("best_epoch"), t.attrs.get("epochs")) for t in trees]
    assert known == [(result.best_epoch, len(losses)), (None, None)]
    # One batch of arrays gives the same loss as its two halves.
    arrays = fit(make(line, optax.adam(schedule)), 3, held_out=(X, YS))
    np.testing.assert_allclose(arrays.held_out, losses[:3], rtol=1e-4)
    with pytest.raises(ValueError, match="early stopping needs held-out data"):
        fit(svi, 3, patience=2)


def test_the_held_out_loss_is_no_single_draw():
    svi = make(line, optax.adam(0.05))
    result = fit(svi, 2, held_out=(X, YS))
    keys = jax.random.split(jax.random.split(KEY)[1], 16)

    @jax.jit
    @jax.vmap
    def evaluate(key):
        return svi.evaluate(result.state._replace(rng_key=key), X, YS)

    draws = evaluate(keys)
    ours = result.held_out[result.best_epoch]
    np.testing.assert_allclose(ours, draws.mean(), rtol=1e-4)
    assert draws.std() > 0.01 * abs(ours)


@pytest.mark.parametrize("patience", [None, 1])
def test_held_out_data_of_no_finite_loss_choose_no_epoch(patience):
    """The state before the first step is no result."""
    spoilt = YS.copy()
    spoilt[3] = np.nan
    svi = make(line, optax.adam(0.05))
    with pytest.raises(ValueError, match="finite after no epoch"):
        fit(svi, 2, held_out=(X, spoilt), patience=patience)


@pytest.mark.parametrize("segment", [pytest.param(None, marks=pytest.mark.slow), 3])
def test_after_a_death_the_data_continue_in_the_same_order(
    tmp_path, monkeypatch, segment
):
    options = {"held_out": (X, YS), "patience": 5, "segment": segment}
    path = tmp_path / "run"
    whole = fit(make(line, optax.adam(0.05)), 5, **options)
    for count in (2, 3):
        passed = []

        def reached(point, passed=passed, count=count):
            passed.append(point)
            if point == "manifest" and passed.count(point) == count:
                raise Died

        monkeypatch.setattr(_store, "reached", reached)
        with pytest.raises(Died):
            fit(make(line, optax.adam(0.05)), 5, path=path, **options)
    monkeypatch.undo()
    for _ in range(2):  # to the end, and once more from what is there
        result = fit(make(line, optax.adam(0.05)), 5, path=path, **options)
        jax.tree.map(np.testing.assert_array_equal, result.params, whole.params)
        np.testing.assert_array_equal(result.losses, whole.losses)
        np.testing.assert_array_equal(result.held_out, whole.held_out)
        assert result.best_epoch == whole.best_epoch
    other = MinibatchLoader((X, YS), 16, rng_key=KEY)
    with pytest.raises(ValueError, match="order was"):
        run_minibatches(
            make(line, optax.adam(0.05)), KEY, other, 5, path=path, **options
        )


def test_a_stopped_run_stays_stopped(tmp_path):
    options = {"held_out": (X, YS), "patience": 1, "path": tmp_path / "run"}
    first = fit(make(line, optax.adam(1.0)), 20, **options)
    assert len(first.held_out) < 20
    again = fit(make(line, optax.adam(1.0)), 20, **options)
    np.testing.assert_array_equal(again.losses, first.losses)
    np.testing.assert_array_equal(again.held_out, first.held_out)


def test_the_bar_shows_both_losses(capfd):
    fit(make(line, optax.adam(0.05)), 2, held_out=(X, YS), progress_bar=True)
    shown = capfd.readouterr().err
    assert "8/8" in shown
    assert "held out: " in shown


@pytest.mark.parametrize("on_disk", [False, True])
def test_losses_keep_the_precision_that_they_were_computed_in(tmp_path, on_disk):
    """The loss of a mean that stays at its start, by hand in float64."""
    y = np.array([1.0, 2.0 / 3.0, 0.1, 0.3])

    def constant(y):
        numpyro.sample("y", dist.Normal(0.0, 1.0).expand([4]).to_event(1), obs=y)

    with jax.enable_x64(True):
        svi = SVI(constant, lambda y: None, optax.sgd(0.0), Trace_ELBO())
        data = MinibatchLoader((y,), 4, rng_key=KEY)
        path = tmp_path / "run" if on_disk else None
        losses = run_minibatches(svi, KEY, data, 1, path=path, progress_bar=False)
        expected = 0.5 * np.sum(y**2) + 2.0 * np.log(2.0 * np.pi)
        assert losses.losses.dtype == np.float64
        np.testing.assert_allclose(losses.losses, [expected], rtol=1e-14)
