"""Every crossing as an ensemble: each member by hand, through its tree and its file."""

import equinox as eqx
import jax
import numpy as np
import pytest
from crossing_runs import CLOSE, check_tree, draws_in, over, own
from crossings import PRIORS, make_model
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl import infer
from pyrox_ppl._dict_order import rebuild
from pyrox_ppl._parameter import parameters_of

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion
KEY, MEMBERS, STEPS, DRAWS = jax.random.key(3), 3, 5, 2


def anew(module, key):
    """The module with other arrays; a tied one stays tied."""
    leaves = jax.tree.leaves(module)
    for i, read in enumerate(parameters_of(module, "net")):
        own_key = jax.random.fold_in(key, i)
        shift = 0.2 * jax.random.normal(own_key, read.stored.shape, read.stored.dtype)
        value = read.stored + shift  # one array, by which a tie is known
        for position in read.positions:
            leaves[position] = value
    return rebuild(module, leaves)


def trained_module(own):
    kind = own.crossing.kind
    return kind.module if kind.training is None else kind.training


def member_of(values, member):
    return jax.tree.map(lambda value: value[member], values)


@over(often=("state-normal",))
@pytest.mark.parametrize(
    "make_guide", [AutoDelta, pytest.param(AutoNormal, marks=pytest.mark.slow)]
)
def test_an_ensemble_and_its_tree(own, make_guide, tmp_path):
    crossing, net = own.crossing, trained_module(own)
    guide = make_guide(crossing.training)
    svi = SVI(crossing.training, guide, Adam(0.01), Trace_ELBO())
    x, y = crossing.x, crossing.y
    fit = infer.run_ensemble(
        svi,
        KEY,
        MEMBERS,
        STEPS,
        x,
        y=y,
        make=lambda key: anew(net, key),
        progress_bar=False,
    )
    if crossing.prior != "around":  # that prior would move with the module
        make_key, key = jax.random.split(jax.random.split(KEY, MEMBERS)[1])
        rule = PRIORS[crossing.prior][0]
        model = make_model(crossing.kind, anew(net, make_key), rule)
        alone = make_guide(model, init_loc_fn=infer.init_to_stored)
        alone = SVI(model, alone, Adam(0.01), Trace_ELBO())
        one = alone.run(key, STEPS, x, y=y, progress_bar=False)
        np.testing.assert_allclose(fit.losses[1], one.losses, rtol=2e-3)
        for name, value in one.params.items():
            np.testing.assert_allclose(fit.params[name][1], value, **CLOSE)

    tree = px.to_datatree(
        fit, x, y=y, guide=guide, model=crossing.model, num_samples=DRAWS
    )
    draws = 1 if make_guide is AutoDelta else DRAWS
    assert dict(tree.posterior.sizes)["chain"] == MEMBERS
    assert dict(tree.posterior.sizes)["draw"] == draws
    states = fit.state.mutable_state or {"state": None}
    kept = [
        {"params": member_of(fit.params, m), "state": member_of(states, m)["state"]}
        for m in range(MEMBERS)
    ]
    of_members = [tree.isel(chain=[m]) for m in range(MEMBERS)]
    for one, values in zip(of_members, kept, strict=True):
        check_tree(own, one, x, **values)

    new_x = crossing.new_x
    expected = np.concatenate(
        [
            [hand.f for hand in own.hands(new_x, draws_in(one), **values)]
            for one, values in zip(of_members, kept, strict=True)
        ]
    )
    px.save(tmp_path / "fit.nc", tree)
    loaded = px.load(tmp_path / "fit.nc").posterior
    for each in (tree, loaded):
        f = px.predict(crossing.model, each, new_x, progress_bar=False)["f"]
        np.testing.assert_allclose(f.mean, expected.mean(0), **CLOSE)
        np.testing.assert_allclose(f.std, expected.std(0), **CLOSE)
    again = px.to_datatree(loaded, new_x, y=crossing.y_at(new_x), model=crossing.model)
    np.testing.assert_allclose(draws_in(again)["f"], expected, **CLOSE)
    assert again.attrs["inference"] == "ensemble"
    diagnosis = px.diagnose(again, loo=False)
    assert "members" in [check.name for check in diagnosis.checks]
    assert "R-hat" not in [check.name for check in diagnosis.checks]
    if crossing.kind.log_prior is None:
        stacked = px.modules_from_draws(crossing.kind.module, tree, name="net")
        assert all(
            leaf.shape[0] == MEMBERS * draws
            for leaf in jax.tree.leaves(eqx.filter(stacked, eqx.is_inexact_array))
        )
