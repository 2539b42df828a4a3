"""diagnose says how many trajectories of NUTS stopped at the largest depth."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import HMC, HMCECS, MCMC, NUTS, DiscreteHMCGibbs

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC, FlatNUTS, run_mcmc

KEY = jax.random.key(0)
SLOW = {"step_size": 1e-3, "adapt_step_size": False}
STEPS = ("num_steps",)


def model():
    numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))


def mixed():
    numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def rows_only():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 8, subsample_size=4) as rows:
        numpyro.sample("y", dist.Normal(x, 1.0), obs=jnp.ones(8)[rows])


def tree_of(kernel, cls=MCMC, fields=STEPS, chains=2):
    method = {"chain_method": "sequential"}
    mcmc = cls(
        kernel,
        num_warmup=10,
        num_samples=20,
        num_chains=chains,
        progress_bar=False,
        **method,
    )
    mcmc.run(KEY, extra_fields=fields)
    return px.to_datatree(mcmc)


def depth(tree):
    checks = px.diagnose(tree, loo=False).checks
    return {check.name: check for check in checks}.get("tree depth")


@pytest.mark.parametrize(
    "cls", [pytest.param(MCMC, marks=pytest.mark.slow), CompiledMCMC]
)
@pytest.mark.parametrize("kernel", [NUTS, FlatNUTS])
def test_steps_too_small_fill_every_tree(cls, kernel, tmp_path):
    tree = tree_of(kernel(model, max_tree_depth=(2, 3), **SLOW), cls)
    check = depth(tree)
    assert check.finding == (
        "100 % of the trajectories stopped at the largest, 7 steps"
    )
    assert (check.passed, tree.attrs["max_tree_depth"]) == (None, 3)
    assert (tree.sample_stats["n_steps"] == 7).all()
    diagnosis = px.diagnose(tree, loo=False)
    assert "note      tree depth" in str(diagnosis)
    assert "tree depth" not in diagnosis.failed
    assert "slow, not wrong." in str(diagnosis)
    assert "not known: tree depth" not in str(diagnosis)
    px.save(tmp_path / "tree.zip", tree)
    assert depth(px.load(tmp_path / "tree.zip").posterior) == check


def test_free_trees_are_fine():
    tree = tree_of(NUTS(model))
    assert depth(tree).passed
    assert tree.attrs["max_tree_depth"] == 10
    assert depth(tree).finding == (
        "0 % of the trajectories stopped at the largest, 1,023 steps"
    )


@pytest.mark.parametrize(("full", "fine"), [(2, True), (3, False)])
def test_the_share_is_over_all_chains(full, fine):
    tree = tree_of(NUTS(model))
    steps = np.full((2, 100), 7)
    steps[1, :full] = 1023
    stats = tree["sample_stats"].to_dataset().isel(draw=[0] * 100)
    tree["sample_stats"].dataset = stats.assign(n_steps=(("chain", "draw"), steps))
    assert depth(tree).passed is (True if fine else None)
    assert depth(tree).finding.startswith(f"{full / 2:.3g} %")


def test_steps_that_were_not_collected_are_not_known():
    check = depth(tree_of(NUTS(model), fields=()))
    assert check.passed is None
    assert "num_steps" in check.advice
    assert not check.remark


def test_only_trees_have_a_depth():
    tree = tree_of(HMC(model))
    assert depth(tree) is None
    assert "tree_depth" not in tree.sample_stats
    assert "max_tree_depth" not in tree.attrs


@pytest.mark.parametrize(
    "wrapper", [pytest.param(HMCECS, marks=pytest.mark.slow), DiscreteHMCGibbs]
)
def test_kernels_that_hold_one_have_its_depth(wrapper):
    own = rows_only if wrapper is HMCECS else mixed
    kernel = wrapper(NUTS(own, max_tree_depth=2, **SLOW))
    fields = ("hmc_state.num_steps",)
    tree = tree_of(kernel, fields=fields, chains=1)
    assert tree.attrs["max_tree_depth"] == 2
    assert "100 % of" in depth(tree).finding


def test_the_warmup_has_a_depth_of_its_own(tmp_path):
    kernel = NUTS(model, max_tree_depth=(2, 3), **SLOW)
    mcmc = MCMC(kernel, num_warmup=10, num_samples=10, progress_bar=False)
    mcmc.warmup(KEY, collect_warmup=True, extra_fields=STEPS)
    warmup = px.to_datatree(mcmc)
    assert warmup.attrs["max_tree_depth"] == 2
    assert (warmup["warmup_sample_stats"]["n_steps"] == 3).all()
    mcmc.run(KEY, extra_fields=STEPS)
    tree = px.to_datatree(mcmc, warmup=warmup)
    assert tree.attrs["max_tree_depth"] == 3
    assert "100 % of" in depth(tree).finding
    assert (tree["warmup_sample_stats"]["n_steps"] == 3).all()


def test_a_resumed_run_and_a_copy_of_its_tree(tmp_path):
    mcmc = MCMC(
        NUTS(model, max_tree_depth=2, **SLOW),
        num_warmup=4,
        num_samples=10,
        progress_bar=False,
    )
    run_mcmc(mcmc, KEY, path=tmp_path / "run", extra_fields=STEPS)
    tree = px.to_datatree(mcmc)
    assert "100 % of" in depth(tree).finding
    # A copy has the draws, but not what the sampler reported of them.
    assert depth(px.to_datatree(tree)) is None
