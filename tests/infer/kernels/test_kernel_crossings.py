"""The kernels on every kind of module, prior and run: draws, trees, predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from crossing_runs import (
    CLOSE,
    DRAWS,
    KEY,
    WARMUP,
    check_joint,
    check_prediction,
    check_tree,
    over,
    own,
    state_of_run,
)
from numpyro.infer import MCMC

import pyrox_ppl as px
from pyrox_ppl import infer

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion


def check_run(own, mcmc, *, distinct=DRAWS // 2 + 1):
    """What the draws of a run mean, by hand, and that the chain moved."""
    draws = jax.device_get(mcmc.get_samples())
    assert set(draws) == own.crossing.latent() | own.crossing.deterministic()
    state = state_of_run(own)
    hands = own.hands(own.crossing.x, draws, params={}, state=state)
    np.testing.assert_allclose(draws["f"], np.stack([h.f for h in hands]), **CLOSE)
    assert len({hand.log_joint for hand in hands}) >= distinct
    return hands


def check_onwards(own, mcmc, model, path):
    """The tree of a run, its diagnosis, predictions, and the tree from a file."""
    x = own.crossing.x
    tree = px.to_datatree(mcmc, x, y=own.crossing.y)
    hands = check_tree(own, tree, x, params={}, state=state_of_run(own))
    diagnosis = px.diagnose(tree, loo=False)
    assert "exactness" in [c.name for c in diagnosis.checks if c.passed is None]
    assert "accepts every step" in str(diagnosis)
    prediction = px.predict(model, tree, x)
    check_prediction(prediction["f"], np.stack([hand.f for hand in hands]))
    px.save(path, tree)
    again = px.load(path).posterior
    assert again.attrs["unadjusted"] == 1
    for name in tree["sample_stats"].data_vars:
        np.testing.assert_array_equal(
            again["sample_stats"][name], tree["sample_stats"][name]
        )
    return tree


@over(often=("state-normal",))
def test_mclmc(own, tmp_path):
    kernel = infer.MCLMC(own.crossing.model)
    mcmc = own.run(kernel, infer.CompiledMCMC)
    check_joint(-mcmc.get_extra_fields()["potential_energy"], check_run(own, mcmc))
    tree = check_onwards(own, mcmc, own.crossing.model, tmp_path / "tree.nc")
    stats = tree["sample_stats"]
    assert {"diverging", "energy_error", "step_size", "L", "n_steps"} <= set(stats)
    assert "tree_depth" not in stats
    assert tree.attrs["gradient_evaluations"] == 2 * (WARMUP + DRAWS)
    assert "energy error" in [c.name for c in px.diagnose(tree, loo=False).checks]


# That both classes draw the same is in test_kernels_with_runs.py.
@over(often=())
def test_mclmc_of_numpyros_mcmc(own):
    mcmc = own.run(infer.MCLMC(own.crossing.model), MCMC)
    check_joint(-mcmc.get_extra_fields()["potential_energy"], check_run(own, mcmc))


@over(often=("convolution-normal",))
def test_low_rank_nuts(own):
    kernel = infer.FlatNUTS(own.crossing.model, adaptation="low_rank", max_tree_depth=3)
    mcmc = own.run(kernel, infer.CompiledMCMC)
    # So short a warm-up leaves a step size at which NUTS rejects some trajectories.
    hands = check_run(own, mcmc, distinct=2)
    check_joint(-mcmc.get_extra_fields()["potential_energy"], hands)


def has_rows(crossing):
    kind = crossing.kind
    return not kind.log_prior and kind.state is None and not kind.groups


def subsampled(own):
    """The model of a crossing on minibatches, which it draws itself."""
    of_rows = own.crossing.model  # without the trees that `own` keeps

    def model(x, y=None):
        with numpyro.plate("pick", len(x), subsample_size=2) as rows:
            pass
        of_rows(x[rows], None if y is None else y[rows], len(x))

    return model


@over(often=("mlp-hierarchical",), where=has_rows)
@pytest.mark.parametrize(
    "kind", [infer.SGLD, pytest.param(infer.SGHMC, marks=pytest.mark.slow)]
)
def test_minibatch_kernels(own, kind):
    """The draws hold the parameters; f of the draws is of any minibatch."""
    kernel = kind(subsampled(own), 1e-6)
    mcmc = infer.CompiledMCMC(
        kernel, num_warmup=WARMUP, num_samples=DRAWS, progress_bar=False
    )
    x, y = jnp.asarray(own.crossing.x), jnp.asarray(own.crossing.y)
    mcmc.run(KEY, x, y=y)
    draws = jax.device_get(mcmc.get_samples())
    assert own.crossing.latent() <= set(draws)
    tree = px.to_datatree(mcmc, x, y=y, model=own.crossing.model)
    check_tree(own, tree, own.crossing.x, params={})
    assert tree.attrs["unadjusted"] == 1
