"""The losses with every kind of module, prior and run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crossing_runs import CLOSE, KEY, over, own
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl import infer
from pyrox_ppl.infer import Flipout_ELBO, LocalReparam_ELBO, init_to_stored

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion
LOSSES = [LocalReparam_ELBO, pytest.param(Flipout_ELBO, marks=pytest.mark.slow)]
DRAWS = 400


def make_svi(own, loss, make=SVI):
    model = own.crossing.training
    guide = AutoNormal(model, init_loc_fn=init_to_stored, init_scale=0.3)
    return make(model, guide, Adam(0.01), loss)


def own_data(own):
    return own.crossing.x, own.crossing.y


def has_minibatches(crossing):
    return crossing.kind.log_prior is None and crossing.kind.training is None


def is_refused(own, loss):
    """Whether no weight can have noise for each row; the loss then says so."""
    x, y = own_data(own)
    rows = px.explain(own.crossing.training, x, y=y, loss=loss).parameters
    noise = [row.noise for row in rows if row.becomes not in ("constant", "param")]
    assert all(noise)
    return all(words.startswith("one draw") for words in noise)


@pytest.mark.parametrize("loss", LOSSES)
@over(often=("ties-normal",))
def test_loss_and_gradient_are_numpyros_on_average(own, loss):
    x, y = own_data(own)
    svi = make_svi(own, loss(), infer.CompiledSVI)
    state = svi.init(KEY, x, y=y)
    if is_refused(own, loss()):
        with pytest.raises(ValueError, match="TraceMeanField_ELBO"):
            svi.evaluate(state, x, y=y)
        return
    params, kept = svi.get_params(state), state.mutable_state or {}

    def one(loss, key):
        def value(params):
            return loss.loss(key, {**params, **kept}, svi.model, svi.guide, x, y=y)

        return jax.value_and_grad(value)(params)

    def both(key):
        return one(Trace_ELBO(), key), one(svi.loss, jax.random.fold_in(key, 1))

    draws = jax.jit(jax.vmap(both))(jax.random.split(KEY, DRAWS))
    for theirs, ours in zip(*map(jax.tree.leaves, draws), strict=True):
        error = jnp.sqrt((theirs.var(0) + ours.var(0)) / DRAWS)
        apart = jnp.abs(theirs.mean(0) - ours.mean(0))
        # Where there is no noise, sums in another order differ by rounding.
        assert (apart < 5 * error + 1e-5 * jnp.abs(theirs).max(0) + 1e-6).all()


@over(often=("state-normal",))
def test_compiled_svi_is_svi(own):
    fits = []
    for make in (SVI, infer.CompiledSVI):
        svi, (x, y) = make_svi(own, LocalReparam_ELBO(), make), own_data(own)
        if is_refused(own, svi.loss):
            return
        fits.append(svi.run(KEY, 20, x, y=y, progress_bar=False))
    plain, compiled = fits
    np.testing.assert_allclose(compiled.losses, plain.losses, rtol=1e-3)
    for name, value in plain.params.items():
        np.testing.assert_allclose(compiled.params[name], value, err_msg=name, **CLOSE)


@over(often=("convolution-normal",), where=has_minibatches)
def test_interrupted_minibatches_continue_bit_for_bit(own, tmp_path, monkeypatch):
    x, y = own_data(own)
    # Not `own`: it keeps the trees of other tests, which no key describes.
    groups, training = own.crossing.kind.groups, own.crossing.training
    by_row = y.swapaxes(0, 1) if groups else y
    loader = infer.MinibatchLoader((x, by_row), 2, rng_key=KEY)

    def run(path):
        def model(x, y, size):
            return training(x, y.swapaxes(0, 1) if groups else y, size)

        guide = AutoNormal(model, init_loc_fn=init_to_stored, init_scale=0.01)
        svi = SVI(model, guide, Adam(0.01), LocalReparam_ELBO())
        path = tmp_path / path
        return infer.run_minibatches(
            svi, KEY, loader, 3, path=path, size=len(x), progress_bar=False
        )

    if is_refused(own, LocalReparam_ELBO()):
        return

    def stop(self, number, *start):
        if number == 2:
            raise KeyboardInterrupt
        return numbers(self, number, *start)

    whole, numbers = run("whole"), infer.MinibatchLoader.numbers
    monkeypatch.setattr(infer.MinibatchLoader, "numbers", stop)
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    monkeypatch.undo()
    parts = run("parts")
    np.testing.assert_array_equal(parts.losses, whole.losses)
    for name, value in whole.params.items():
        np.testing.assert_array_equal(parts.params[name], value, err_msg=name)
