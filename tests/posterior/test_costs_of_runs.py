"""What a run cost is in its tree, where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC, CompiledSVI, run_mcmc, run_svi

KEY = jax.random.key(0)
Y = jnp.array([0.3, 0.9, 1.4])
SIZES = {"num_warmup": 20, "num_samples": 10, "progress_bar": False}
FIELDS = {"extra_fields": ("num_steps",)}


def model(y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("row", 3):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def steps_of(mcmc):
    return int(np.sum(mcmc.get_extra_fields()["num_steps"]))


def costs(source, **kwargs):
    attrs = px.to_datatree(source, y=Y, **kwargs).attrs
    names = ("seconds", "gradient_evaluations", "gradient_evaluations_of")
    return {name: attrs[name] for name in names if name in attrs}


@pytest.fixture(scope="module")
def numpyros():
    """NumPyro's run, and the leapfrog steps of its warm-up and of its draws."""
    mcmc = MCMC(NUTS(model), **SIZES)
    mcmc.warmup(KEY, y=Y, collect_warmup=True, **FIELDS)
    warmup = steps_of(mcmc)
    mcmc.run(mcmc.post_warmup_state.rng_key, y=Y, **FIELDS)
    return mcmc, warmup, steps_of(mcmc)


def test_numpyros_mcmc_tells_the_steps_of_its_draws_if_asked(numpyros):
    mcmc, _, draws = numpyros
    assert costs(mcmc) == {
        "gradient_evaluations": draws,
        "gradient_evaluations_of": "draws without warmup",
    }
    plain = MCMC(NUTS(model), **SIZES, thinning=2)
    plain.run(KEY, y=Y, **FIELDS)
    assert costs(plain) == {}  # the steps of other draws are not kept
    plain.run(KEY, y=Y)
    assert costs(plain) == {}


@pytest.mark.parametrize("bar", [False, True])
def test_a_compiled_run_counts_its_warmup(numpyros, bar):
    _, warmup, draws = numpyros
    mcmc = CompiledMCMC(NUTS(model), **{**SIZES, "progress_bar": bar})
    mcmc.warmup(KEY, y=Y, collect_warmup=True, **FIELDS)
    first = costs(mcmc, log_likelihood=False)
    assert first["gradient_evaluations"] == warmup
    for _ in range(2):  # the warm-up counts once for each run that starts from it
        mcmc.run(mcmc.post_warmup_state.rng_key, y=Y, **FIELDS)
        found = costs(mcmc)
        assert found["gradient_evaluations"] == warmup + steps_of(mcmc)
        assert found["seconds"] > first["seconds"] > 0
        assert "gradient_evaluations_of" not in found
    assert steps_of(mcmc) == draws


def two_chains(**kwargs):
    kernel = NUTS(model, step_size=0.3, adapt_step_size=False, adapt_mass_matrix=False)
    settings = {**SIZES, "num_warmup": 0, "num_samples": 6, "num_chains": 2}
    mcmc = CompiledMCMC(kernel, **settings, **kwargs)
    mcmc.run(KEY, y=Y, **FIELDS)
    return mcmc


@pytest.fixture(scope="module")
def whole():
    """Two chains, all of whose draws are kept."""
    return two_chains(chain_method="sequential")


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_several_chains_and_thinning_count_every_step(whole, method):
    thinned = two_chains(chain_method=method, thinning=3)
    assert len(thinned.get_samples()["mean"]) == 4
    assert costs(whole)["gradient_evaluations"] == steps_of(whole)
    assert costs(thinned)["gradient_evaluations"] == steps_of(whole)


def test_a_resumable_run_counts_every_segment(numpyros, tmp_path):
    _, warmup, _ = numpyros
    mcmc = MCMC(NUTS(model), **SIZES)
    mcmc = run_mcmc(mcmc, KEY, y=Y, path=tmp_path / "run", segment=3, **FIELDS)
    found = costs(mcmc)
    assert found["gradient_evaluations"] == warmup + steps_of(mcmc)
    assert found["seconds"] > 0
    again = MCMC(NUTS(model), **SIZES)
    again = run_mcmc(again, KEY, y=Y, path=tmp_path / "run", segment=3, **FIELDS)
    assert costs(again) == found
    again.run(KEY, y=Y)  # NumPyro's own, which tells nothing
    assert costs(again) == {}


def test_svi_counts_a_gradient_for_each_step_and_particle(tmp_path):
    def svi(make):
        return make(model, AutoNormal(model), Adam(0.1), Trace_ELBO(num_particles=3))

    guide = AutoNormal(model)
    # Compiled whole: it is a hundred small programs.
    plain = jax.jit(lambda key: svi(SVI).run(key, 5, y=Y, progress_bar=False))(KEY)
    assert costs(plain, guide=guide) == {}
    compiled = svi(CompiledSVI).run(KEY, 5, y=Y, progress_bar=False)
    path = tmp_path / "run"
    resumed = run_svi(svi(SVI), KEY, 5, y=Y, path=path, progress_bar=False)
    for fit in (compiled, resumed):
        found = costs(fit, guide=guide)
        assert found["gradient_evaluations"] == 15
        assert found["seconds"] == fit.seconds > 0
        params, state, losses = fit
        assert (params, state) == (fit.params, fit.state)
        assert len(losses) == 5
    # A fit whose arrays were mapped does not tell any more.
    assert costs(jax.tree.map(jnp.asarray, compiled), guide=guide) == {}


def test_compare_says_whose_warmup_is_left_out(numpyros):
    mcmc, _, draws = numpyros
    trees = {"NUTS": px.to_datatree(mcmc, y=Y), "far": None}
    shifted = {"mean": mcmc.get_samples()["mean"] + 1.0}
    trees["far"] = px.to_datatree(shifted, y=Y, model=model)
    comparison = px.compare(trees)
    assert comparison.cost["NUTS"] == {"gradient_evaluations": draws}
    assert "gradient evaluations of NUTS: draws without warmup" in comparison.notes
    again = px.to_datatree(trees["NUTS"], y=Y, model=model)
    assert again.attrs["gradient_evaluations_of"] == "draws without warmup"
