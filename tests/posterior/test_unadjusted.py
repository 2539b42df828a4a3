"""diagnose on kernels that accept every step: what it says, and what it cannot say."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import pyrox_ppl as px

LINEAR = eqx.nn.Linear(1, 1, key=jax.random.key(0))
X = jnp.linspace(0.5, 1.0, 5)[:, None]
DIMENSION = 2


def tree_of(**stats):
    """A tree as `to_datatree` makes it of a run, with these statistics."""
    weights = jax.random.normal(jax.random.key(1), (4, 500, 1, 1))
    tree = px.to_datatree({"linear.weight": weights}, batch_ndims=2)
    tree.attrs |= {"inference": "MCMC", "kernel": "MCLMC"}
    tree.attrs |= {"unadjusted": 1, "dimension": DIMENSION}
    arrays = {
        name: xr.DataArray(np.broadcast_to(value, (4, 500)), dims=("chain", "draw"))
        for name, value in ({"diverging": False, "step_size": 0.25} | stats).items()
    }
    tree["sample_stats"] = xr.DataTree(xr.Dataset(arrays))
    return tree


def checks_of(tree):
    diagnosis = px.diagnose(tree, LINEAR, X)
    return diagnosis, {check.name: check for check in diagnosis.checks}


def test_the_energy_error_is_judged_per_dimension_and_chain():
    error = np.random.default_rng(0).normal(0.0, 0.4, (4, 500))
    diagnosis, checks = checks_of(tree_of(energy_error=error))
    assert diagnosis.ok
    assert "E-BFMI" not in checks
    worst = (error**2).mean(1).max() / DIMENSION
    assert f"at most {worst:.2g} per dimension" in checks["energy error"].finding
    assert "step size 0.25" in checks["energy error"].finding
    error[2] *= 5.0  # one chain of four
    diagnosis, checks = checks_of(tree_of(energy_error=error))
    assert diagnosis.failed == ("energy error",)
    assert "smaller energy_variance" in str(diagnosis)


def test_it_says_that_a_bias_cannot_be_seen():
    diagnosis, checks = checks_of(tree_of(energy_error=0.1))
    assert checks["exactness"].passed is None
    assert "MCLMC accepts every step" in str(diagnosis)
    assert "a tenth of the energy_variance" in str(diagnosis)
    assert "not known: exactness" in str(diagnosis)
    diagnosis, checks = checks_of(tree_of())  # as of SGLD, which has no energy
    assert "energy error" not in checks
    assert "a tenth of the step size" in str(diagnosis)


def test_divergences_are_counted_with_the_steps():
    diverging = np.arange(2000).reshape(4, 500) < 3
    steps = np.linspace(0.1, 0.5, 500)
    diagnosis, checks = checks_of(tree_of(diverging=diverging, step_size=steps))
    assert diagnosis.failed == ("divergences",)
    found = checks["divergences"].finding
    assert found == "3 of 2000 kept steps, at step sizes from 0.1 to 0.5"
    assert "stays where it is" in str(diagnosis)


def test_functions_are_still_compared_between_chains():
    tree = tree_of(energy_error=0.1)
    weights = tree.posterior["linear.weight"]
    apart = xr.DataArray([9.0, 0.0, 0.0, 0.0], dims="chain")
    tree["posterior"] = (
        tree["posterior"].to_dataset().assign({"linear.weight": weights + apart})
    )
    diagnosis, _ = checks_of(tree)
    assert "R-hat" in diagnosis.failed


def test_copies_of_a_tree_know_it():
    again = px.to_datatree(tree_of(energy_error=0.1))
    assert again.attrs["unadjusted"] == 1
    assert again.attrs["dimension"] == DIMENSION


@pytest.mark.parametrize("kernel", ["NUTS", "FlatNUTS"])
def test_other_kernels_are_judged_as_before(kernel):
    tree = tree_of(energy=np.random.default_rng(0).normal(size=(4, 500)))
    tree.attrs["kernel"] = kernel
    del tree.attrs["unadjusted"]
    _, checks = checks_of(tree)
    assert "E-BFMI" in checks
    assert "exactness" not in checks
