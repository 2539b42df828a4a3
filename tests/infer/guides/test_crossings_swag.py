"""AutoSWAG crossed with every kind of module and prior, in a tree and on disk."""

import jax
import numpy as np
import pytest
from crossing_runs import CLOSE, KEY, Runs, check_tree, draws_in, over, own, state_of

import pyrox_ppl as px
from pyrox_ppl.infer import AutoSWAG, CompiledSVI

__all__ = ["own"]
# NumPyro's scan asks every replayed site for its shape, the moments too.
pytestmark = [
    pytest.mark.rank_promotion,
    pytest.mark.filterwarnings("ignore:shape requires:DeprecationWarning"),
]

# By default test_auto_swag.py has the moments by hand, and test_mixtures.py a tree, its
# file, diagnosis and predictions.
USUAL = ()
RANK, STEPS = 3, 20


def swag(own: Runs):
    return AutoSWAG(own.crossing.training, rank=RANK, start=5)


def by_numpy(svi, own):
    """The moments of the iterates of a loop of single steps, by site."""
    state = svi.init(KEY, own.crossing.x, y=own.crossing.y)
    update = jax.jit(svi.update)
    seen = []
    for _ in range(STEPS):
        state, _ = update(state, own.crossing.x, y=own.crossing.y)
        seen.append(state.mutable_state["auto_moments"]["last"])
    # Step t sees the location after step t - 1; those after step 5 are collected.
    kept = seen[6:]
    names = kept[0]
    return {n: np.stack([np.asarray(u[n], np.float64) for u in kept]) for n in names}


@over(USUAL)
def test_swag_from_the_run_to_the_disk(own, tmp_path):
    crossing, guide = own.crossing, swag(own)
    svi = own.svi(guide, CompiledSVI)
    fit = svi.run(KEY, STEPS, crossing.x, y=crossing.y, progress_bar=False)
    moments = fit.params["auto_moments"]
    values = by_numpy(own.svi(swag(own), CompiledSVI), own)
    assert set(moments["mean"]) == set(values) == crossing.latent()
    for name, iterates in values.items():
        assert moments["count"] == len(iterates) == STEPS - 6
        # Another program rounds otherwise, which Adam's first steps magnify where a
        # gradient cancels. An iterate more or less would move a mean by 7e-4.
        close = {"rtol": 1e-3, "atol": 1e-4, "err_msg": name}
        np.testing.assert_allclose(moments["mean"][name], iterates.mean(0), **close)
        spread = np.sqrt(moments["squares"][name] / len(iterates))
        np.testing.assert_allclose(spread, iterates.std(0), rtol=2e-2, atol=1e-5)

    tree = own.tree_of_fit(fit, guide)
    assert tree.attrs["guide"] == "AutoSWAG"
    assert tree.attrs["point_estimate"] == 0
    assert tree.attrs["gradient_evaluations"] == STEPS
    draws = draws_in(tree)
    state = None if crossing.kind.state is None else state_of(fit)
    trained = {"params": fit.params, "state": state}
    check_tree(own, tree, crossing.x, **trained)
    for name in crossing.latent():
        assert (draws[name].std(0) > 0).mean() > 0.5, name
    new_x = crossing.new_x
    found = px.diagnose(tree, crossing.model, crossing.x, loo=False)
    assert str(found)
    px.save(tmp_path / "fit.nc", tree, crossing.kind.module, name="net")
    saved = px.load(tmp_path / "fit.nc")
    for name, value in draws_in(saved.posterior).items():
        np.testing.assert_array_equal(value, draws[name], err_msg=name)
    x = crossing.x if crossing.kind.log_prior else new_x
    prediction = px.predict(crossing.model, saved.posterior, x)["f"]
    f = np.stack([hand.f for hand in own.hands(x, draws, **trained)])
    np.testing.assert_allclose(prediction.mean, f.mean(0), **CLOSE)
