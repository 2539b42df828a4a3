"""Params with random initial values, and ties, in compiled and resumable runs."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.primitives import mutable as numpyro_mutable

import pyrox_ppl as px
from pyrox_ppl.infer import (
    CompiledMCMC,
    CompiledPredictive,
    CompiledSVI,
    FlatNUTS,
    run_mcmc,
    run_svi,
)

pytestmark = pytest.mark.rank_promotion

KEY = jax.random.key(0)
Y = jnp.zeros(3)


def model(y):
    """`mu` is minus `w` in the posterior: a param that changes is seen in the draws."""
    w = numpyro.param("w", lambda key: 5.0 * jax.random.normal(key))
    numpyro.deterministic("c", w + numpyro_mutable("state", {"b": 1.0})["b"])
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(mu + w, 0.1).expand([3]).to_event(1), obs=y)


def make(cls=CompiledMCMC, kernel=NUTS, **kwargs):
    settings = {"num_warmup": 100, "num_samples": 40, "progress_bar": False} | kwargs
    return cls(kernel(model), **settings)


def value(mcmc):
    """The one value of the param, after a check that the draws are of its posterior."""
    draws = mcmc.get_samples()
    (c,) = np.unique(draws["c"])
    np.testing.assert_allclose(np.mean(draws["mu"]), 1.0 - c, atol=0.06)
    assert np.std(draws["mu"]) < 0.15
    return c


@pytest.fixture(scope="module")
def numpyros():
    mcmc = make(MCMC)
    mcmc.run(KEY, Y)
    return value(mcmc)


@pytest.mark.parametrize("kernel", [NUTS, FlatNUTS])
def test_a_param_is_drawn_once_per_run_as_numpyro_does(kernel, numpyros, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("CI", raising=False)
    mcmc = make(kernel=kernel, progress_bar=True)
    mcmc.run(KEY, Y)
    np.testing.assert_allclose(value(mcmc), numpyros, rtol=1e-6)
    mcmc.run(jax.random.key(1), Y)
    assert abs(value(mcmc) - numpyros) > 0.1


@pytest.mark.parametrize(
    "method", ["sequential", pytest.param("vectorized", marks=pytest.mark.slow)]
)
def test_all_chains_have_the_param_of_the_first(method):
    mcmc = make(num_chains=2, chain_method=method)
    mcmc.run(KEY, Y)
    vectorized = make(MCMC, num_chains=2, chain_method="vectorized")
    vectorized.run(KEY, Y)
    np.testing.assert_allclose(value(mcmc), value(vectorized), rtol=1e-6)


def test_a_run_after_warm_up_goes_on_with_its_param_also_in_a_copy():
    mcmc = make()
    mcmc.warmup(KEY, Y, collect_warmup=True)
    (warm,) = np.unique(mcmc.get_samples()["c"])
    copied = pickle.loads(pickle.dumps(mcmc))
    for run in (mcmc, copied):
        run.run(jax.random.key(1), Y)
        assert value(run) == warm


def test_resumable_chains_have_one_param(tmp_path):
    mcmc = make(num_chains=2, chain_method="sequential")
    mcmc.run(KEY, Y)
    result = run_mcmc(mcmc, KEY, Y, path=tmp_path / "run")
    np.testing.assert_allclose(np.unique(result.get_samples()["c"]), value(mcmc))


def test_svi_draws_it_once_and_predictive_for_every_draw_as_numpyro():
    guide = AutoNormal(model)
    fits = [
        cls(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO()).run(
            KEY, 3, Y, progress_bar=False
        )
        for cls in (CompiledSVI, SVI)
    ]
    np.testing.assert_allclose(fits[0].params["w"], fits[1].params["w"], rtol=1e-5)
    ours, theirs = (
        cls(model, num_samples=4)(KEY, Y)["c"]
        for cls in (CompiledPredictive, Predictive)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


W = jnp.array([[1.0, 2.0], [3.0, 4.0]])
TIED, UNTIED = {"dec": W, "enc": W}, {"dec": W, "enc": W + 0.0}


def network(net):
    with px.bayesianize():
        net = px.bind(net, "net")
    numpyro.deterministic("gap", jnp.abs(net["dec"] - net["enc"]).max())


def check(draws, *, tied):
    assert ("net.enc" in draws) != tied
    assert (np.asarray(draws["gap"]) == 0).all() == tied


def test_predictive_sees_ties():
    predictive = CompiledPredictive(network, num_samples=2)
    for net in (TIED, UNTIED, TIED):
        check(predictive(KEY, net), tied=net is TIED)
    draws = {"net.dec": jnp.stack([W, -W])}
    np.testing.assert_array_equal(
        CompiledPredictive(network, draws)(KEY, TIED)["gap"], 0
    )


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="one", marks=pytest.mark.slow),
        pytest.param({"num_chains": 2}, id="chains"),
    ],
)
def test_mcmc_sees_ties(settings):
    mcmc = CompiledMCMC(
        FlatNUTS(network), num_warmup=3, num_samples=2, progress_bar=False, **settings
    )
    for net in (TIED, UNTIED):
        mcmc.run(KEY, net)
        check(mcmc.get_samples(), tied=net is TIED)


def test_svi_sees_ties():
    svi = CompiledSVI(
        network, AutoNormal(network), numpyro.optim.Adam(0.1), Trace_ELBO()
    )
    fit = svi.run(KEY, 2, TIED, progress_bar=False)
    assert sorted(fit.params) == ["net.dec_auto_loc", "net.dec_auto_scale"]
    svi.guide = AutoNormal(network)
    assert len(svi.run(KEY, 2, UNTIED, progress_bar=False).params) == 4


def test_resumable_runs_see_ties(tmp_path):
    mcmc = CompiledMCMC(NUTS(network), num_warmup=3, num_samples=2, progress_bar=False)
    result = run_mcmc(mcmc, KEY, TIED, path=tmp_path / "mcmc")
    check(result.get_samples(), tied=True)
    svi = SVI(network, AutoNormal(network), numpyro.optim.Adam(0.1), Trace_ELBO())
    fit = run_svi(svi, KEY, 2, TIED, path=tmp_path / "svi", progress_bar=False)
    assert sorted(fit.params) == ["net.dec_auto_loc", "net.dec_auto_scale"]
