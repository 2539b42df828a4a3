"""FlatNUTS: the sampler is NUTS, the sites are the user's."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from models import H, Z, film_regression
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Predictive, init_to_median
from numpyro.infer.util import potential_energy

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC, FlatNUTS, keep_compiled

pytestmark = pytest.mark.rank_promotion

KEY = jax.random.key(1)
Y = jnp.array([0.3, 1.1, -0.4, 0.8])


def normal(y=None):
    """Two means with a conjugate posterior, and a scale with a known one."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("alone", dist.Gamma(3.0, 2.0))
    with numpyro.plate("row", 4):
        numpyro.sample("y", dist.Normal(mean[0] + 0.0 * mean[1], 0.5), obs=y)


@pytest.fixture(scope="module")
def sampled():
    mcmc = CompiledMCMC(
        FlatNUTS(normal),
        num_warmup=300,
        num_samples=1000,
        num_chains=2,
        progress_bar=False,
    )
    mcmc.run(KEY, y=Y)
    return mcmc


def test_moments_are_those_of_the_closed_form(sampled):
    draws = sampled.get_samples(group_by_chain=True)
    variance = 1.0 / (1.0 + 4 / 0.25)
    exact = {
        "mean": ([variance * Y.sum() / 0.25, 0.0], [variance, 1.0]),
        "alone": (3.0 / 2.0, 3.0 / 4.0),
    }
    for name, (mean, var) in exact.items():
        values = np.asarray(draws[name])
        ess = effective_sample_size(values)
        assert np.all(ess > 200)
        error = np.sqrt(np.asarray(var) / ess)
        assert np.all(np.abs(values.mean((0, 1)) - mean) < 4 * error)
        np.testing.assert_allclose(values.var((0, 1)), var, rtol=0.25)


def test_the_potential_is_that_of_the_sites(sampled):
    kernel = FlatNUTS(normal)
    state = kernel.init(KEY, 10, model_kwargs={"y": Y})
    sites = {"mean": jnp.array([0.2, -0.3]), "alone": jnp.array(0.4)}
    vector = ravel_pytree(sites)[0]
    flat = kernel.get_potential_fn((), {"y": Y})
    by_sites = potential_energy(normal, (), {"y": Y}, sites)
    np.testing.assert_allclose(flat(vector), by_sites, rtol=1e-6)
    constrained = kernel.get_constrain_fn((), {"y": Y})(vector)
    np.testing.assert_allclose(constrained["alone"], np.exp(0.4), rtol=1e-6)
    assert state.z.shape == (3,)


def test_it_takes_the_steps_of_nuts_on_a_potential():
    start = {"mean": jnp.array([0.2, -0.3]), "alone": jnp.array(0.4)}
    vector, unravel = ravel_pytree(start)
    by_hand = NUTS(
        potential_fn=lambda v: potential_energy(normal, (), {"y": Y}, unravel(v))
    )
    runs = []
    for kernel, init in ((by_hand, vector), (FlatNUTS(normal), start)):
        kwargs = {} if kernel is by_hand else {"y": Y}
        mcmc = MCMC(kernel, num_warmup=20, num_samples=10, progress_bar=False)
        mcmc.run(KEY, init_params=init, **kwargs)
        runs.append(mcmc.last_state)
    np.testing.assert_allclose(runs[1].z, runs[0].z, rtol=1e-3, atol=1e-4)


def test_a_flat_run_goes_on_to_predictive_and_datatree(key):
    mcmc = CompiledMCMC(
        FlatNUTS(film_regression, init_strategy=init_to_median, max_tree_depth=3),
        num_warmup=10,
        num_samples=5,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    h = jnp.stack([H, -H])
    mcmc.run(key, h, y=jnp.tanh(h))
    predicted = Predictive(film_regression, mcmc.get_samples())(key, h)
    assert predicted["y"].shape == (10, 2, 3)
    tree = px.to_datatree(mcmc, h, y=jnp.tanh(h))
    assert tree.posterior["affine_modulation.generator.weight"].shape == (2, 5, 6, 2)
    assert np.isfinite(tree.sample_stats["lp"]).all()
    assert Z.shape == (2,)


def test_blocks_of_sites_and_other_potentials_are_refused():
    with pytest.raises(TypeError, match=r"use numpyro\.infer\.NUTS"):
        FlatNUTS(normal, dense_mass=True, inverse_mass_matrix={("mean",): jnp.eye(2)})
    with pytest.raises(TypeError, match="takes a model"):
        FlatNUTS(normal, potential_fn=lambda z: z)
    mcmc = CompiledMCMC(
        FlatNUTS(normal), num_warmup=1, num_samples=1, progress_bar=False
    )
    with pytest.raises(ValueError, match="sites"):
        mcmc.run(KEY, y=Y, init_params={"mean": jnp.zeros(2)})


def test_compiled_programs_are_found_again_in_another_process(tmp_path):
    code = """
import sys, jax
from pyrox_ppl.infer import keep_compiled
keep_compiled(sys.argv[1], min_seconds=0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
jax.jit(lambda x: x * 3 + 1)(jax.numpy.ones(5))
print(sum(name == "/jax/compilation_cache/cache_hits" for name in events))
"""
    hits = [
        int(
            subprocess.run(
                [sys.executable, "-c", code, str(tmp_path)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for _ in range(2)
    ]
    assert hits[0] == 0 < hits[1]
    with pytest.raises(ValueError, match="min_seconds"):
        keep_compiled(tmp_path, min_seconds=-1.0)
