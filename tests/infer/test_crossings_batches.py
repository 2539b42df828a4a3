"""Every crossing on minibatches: its scales, its fit by the hand, and spoilt rows."""

import functools

import jax
import numpy as np
import pytest
from crossing_runs import KEY, USUAL, check_tree, over, own, state_of
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam
from numpyro.primitives import Messenger

from pyrox_ppl import infer
from pyrox_ppl.infer._batch_scale import check_batch_scale

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion
N, B = 6, 3


class ScaleObserved(Messenger):
    """Scale what is observed, whatever else the model holds."""

    def __init__(self, fn, factor):
        super().__init__(fn)
        self.factor = factor

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["is_observed"]:
            msg["scale"] = self.factor * (msg["scale"] or 1.0)


def by_rows(crossing):
    """Its data with the rows first, as a loader wants them."""
    y = crossing.y
    return crossing.x, y.swapaxes(0, 1) if crossing.kind.groups else y


def on_batches(crossing, model, size):
    """A model of such data; not of `own`, which keeps the trees of other tests."""
    groups = crossing.kind.groups

    def of_rows(x, y=None):
        is_turned = groups and y is not None
        return model(x, y.swapaxes(0, 1) if is_turned else y, size=size)

    return of_rows


@over(often=USUAL)
def test_the_scale_of_a_batch(own):
    crossing = own.crossing
    arrays = by_rows(crossing)
    num_rows = len(arrays[0])
    batch = tuple(rows[:B] for rows in arrays)
    factor = num_rows / B

    def check(size, around=lambda model: model):
        model = around(on_batches(crossing, crossing.training, size))
        return check_batch_scale(model, batch, num_rows, {})

    tempered = functools.partial(ScaleObserved, factor=0.3 * factor)
    scaled = functools.partial(ScaleObserved, factor=factor)
    everything = functools.partial(handlers.scale, scale=factor)
    assert check(num_rows) == {"y": 1.0}
    assert check(None, scaled) == {"y": 1.0}
    assert check(None, tempered) == pytest.approx({"y": 0.3})
    for size, around, message in [
        (None, lambda model: model, f"must count {factor:g} times"),
        (None, everything, "as the prior of"),
        (num_rows, scaled, "by its plate and"),
        (10 * num_rows, lambda model: model, f"of {10 * num_rows} rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            check(size, around)


def are_rows_exchangeable(crossing):
    return crossing.kind.log_prior is None


@over(often=("state-normal",), where=are_rows_exchangeable)
def test_a_fit_of_batches_and_its_tree(own):
    """By the hand; and one row that is NaN is told by the run and by the tree."""
    crossing = own.crossing
    x, y = by_rows(crossing)
    model = on_batches(crossing, crossing.training, N)
    guide = AutoNormal(model)
    svi = SVI(model, guide, Adam(0.01), Trace_ELBO())

    def train(y, **options):
        loader = infer.MinibatchLoader((x, y), B, rng_key=KEY)
        return infer.run_minibatches(svi, KEY, loader, 2, progress_bar=False, **options)

    fit = train(y)
    tree = own.tree_of_fit(fit, guide)
    check_tree(own, tree, crossing.x, params=fit.params, state=state_of(fit))
    spoilt = y.copy()
    spoilt[3] = np.nan
    with pytest.warns(RuntimeWarning, match="diverged"):
        lost = train(spoilt)
    with pytest.raises(ValueError, match=r"diverged: .* of its parameters hold NaN"):
        own.tree_of_fit(lost, guide)


@over(often=(), where=are_rows_exchangeable)
def test_rows_that_are_left_out_leave_nothing_behind(own):
    crossing = own.crossing
    x, y = by_rows(crossing)
    model = on_batches(crossing, crossing.training, N)
    guide = AutoNormal(model)
    svi = SVI(model, guide, Adam(0.01), Trace_ELBO())
    x = x.copy()
    x[3] = np.nan
    loader = infer.MinibatchLoader((x, y), B, rng_key=KEY, shuffle=False)
    options = {"stable_update": True, "progress_bar": False}
    fit = infer.run_minibatches(svi, KEY, loader, 2, **options)
    np.testing.assert_array_equal(np.isfinite(fit.losses), [1, 0, 1, 0])
    tree = own.tree_of_fit(fit, guide)
    check_tree(own, tree, crossing.x, params=fit.params, state=state_of(fit))


@over(often=(), where=are_rows_exchangeable)
def test_curvature_of_batches_is_that_of_all_rows(own):
    crossing = own.crossing
    arrays = by_rows(crossing)
    training, model = (
        on_batches(crossing, one, N) for one in (crossing.training, crossing.model)
    )
    # Away from a mode a heavy-tailed prior has no curvature, or a negative one.
    guide = infer.AutoLaplace(training, "diag", damping=10.0)
    svi = infer.CompiledSVI(training, guide, Adam(0.01), Trace_ELBO())
    fit = svi.run(KEY, 1, *arrays, progress_bar=False)
    loader = infer.MinibatchLoader(arrays, 4, rng_key=KEY)
    options = {"model": model, "max_decrement": np.inf}
    parts = guide.add_curvature(fit, loader, **options)
    whole = guide.add_curvature(fit, *arrays, **options)
    for name in guide.added_params(whole.params):
        pairs = zip(
            *(jax.tree.leaves(one.params[name]) for one in (parts, whole)), strict=True
        )
        for part, all_rows in pairs:
            size = np.abs(all_rows).max()
            np.testing.assert_allclose(part, all_rows, rtol=1e-3, atol=1e-4 * size)
    unscaled = on_batches(crossing, crossing.model, None)
    with pytest.raises(ValueError, match=r"must count 1\.5 times"):
        guide.add_curvature(fit, loader, model=unscaled, max_decrement=np.inf)
