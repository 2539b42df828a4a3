"""Every kind of model by every kind of inference: the groups, against the hand."""

import warnings

import arviz_stats
import jax
import numpy as np
import pytest
from battery import BATTERY
from numpyro.infer import HMCECS, MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer import autoguide as auto
from numpyro.optim import Adam

import pyrox_ppl as px

KEY = jax.random.key(0)
GUIDES = {
    "AutoNormal": auto.AutoNormal,
    "AutoDiagonalNormal": auto.AutoDiagonalNormal,
    "AutoMultivariateNormal": auto.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": auto.AutoLowRankMultivariateNormal,
    "AutoIAFNormal": auto.AutoIAFNormal,
    "AutoDelta": auto.AutoDelta,
}
DRAWS = 40


def by_mcmc(entry, kernel, chains):
    mcmc = MCMC(
        kernel,
        num_warmup=50,
        num_samples=DRAWS,
        num_chains=chains,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(KEY, **entry.kwargs)
    return px.to_datatree(mcmc, **entry.kwargs, rng_key=KEY), {}


def by_svi(entry, guide):
    svi = SVI(entry.model, guide, Adam(0.05), Trace_ELBO())
    fit = svi.run(KEY, 30, **entry.kwargs, progress_bar=False)
    tree = px.to_datatree(
        fit,
        guide=guide,
        model=entry.model,
        num_samples=DRAWS,
        rng_key=KEY,
        **entry.kwargs,
    )
    return tree, fit.params


def by_dictionary(entry):
    inputs = {"x": entry.kwargs["x"]}
    drawn = Predictive(entry.model, num_samples=DRAWS)(KEY, **inputs)
    latent = {n: v for n, v in drawn.items() if n not in entry.kwargs}
    return px.to_datatree(latent, model=entry.model, rng_key=KEY, **entry.kwargs), {}


def infer(name, how):
    entry = BATTERY[name]
    match how:
        case "NUTS-1" | "NUTS-4":
            return by_mcmc(entry, NUTS(entry.model), int(how[-1]))
        case "HMCECS":
            return by_mcmc(entry, HMCECS(NUTS(entry.model), num_blocks=1), 1)
        case "dictionary":
            return by_dictionary(entry)
        case "custom":
            return by_svi(entry, entry.guide)
        case _:
            return by_svi(entry, GUIDES[how](entry.model))


def combinations():
    """All that can be run; a representative part of them in every run."""
    often = {
        ("several", "AutoNormal"),
        ("several", "AutoDelta"),
        ("masked", "AutoDiagonalNormal"),
        ("param", "AutoMultivariateNormal"),
        ("nested", "NUTS-4"),
        ("several", "NUTS-1"),
        ("subsampled", "AutoNormal"),
        ("subsampled", "HMCECS"),
    }
    one_dimensional = {"subsampled", "several", "masked", "param"}
    for name, entry in BATTERY.items():
        hows = ["dictionary", *GUIDES]
        hows += ["HMCECS"] if entry.subsampled else ["NUTS-1", "NUTS-4"]
        hows += ["custom"] if entry.guide else []
        for how in hows:
            if how == "AutoIAFNormal" and name in one_dimensional:
                continue  # a flow of NumPyro's needs two dimensions
            usual = (name, how) in often or how in ("dictionary", "custom")
            marks = () if usual else (pytest.mark.slow,)
            yield pytest.param(name, how, id=f"{name}-{how}", marks=marks)


def draw_of(tree, chain, draw, params):
    values = {
        v.attrs.get("numpyro_name", n): v.values[chain, draw]
        for n, v in tree.posterior.data_vars.items()
    }
    arrays = {n: v for n, v in params.items() if hasattr(v, "shape")}
    return values | {name: np.asarray(value) for name, value in arrays.items()}


@pytest.mark.rank_promotion
@pytest.mark.parametrize(("name", "how"), list(combinations()))
def test_every_group_is_what_it_is_by_hand(name, how):
    entry = BATTERY[name]
    tree, params = infer(name, how)
    chains = 4 if how == "NUTS-4" else 1
    draws = 1 if how == "AutoDelta" else DRAWS
    for group in ("posterior", "posterior_predictive", "log_likelihood", "log_prior"):
        for variable in tree[group].data_vars.values():
            assert variable.dims[:2] == ("chain", "draw"), group
            assert variable.shape[:2] == (chains, draws), group
            assert np.isfinite(variable.values).all()
    deterministic = {"double"} if name == "several" else set()
    assert set(tree.posterior.data_vars) == entry.latent | deterministic
    assert set(tree.log_likelihood.data_vars) == set(entry.dims)
    assert set(tree.posterior_predictive.data_vars) == set(entry.dims)
    assert set(tree.constant_data.data_vars) == {"x"}
    assert tree.attrs.get("point_estimate", 0) == (how == "AutoDelta")
    for chain, draw in ((0, 0), (chains - 1, draws - 1)):
        one = draw_of(tree, chain, draw, params)
        for site, expected in entry.by_hand(one).items():
            ours = tree.log_likelihood[site]
            assert ours.dims[2:] == entry.dims[site]
            np.testing.assert_allclose(
                ours.values[chain, draw], expected, rtol=1e-3, atol=1e-3
            )
        if name == "several":
            assert one["double"] == pytest.approx(2 * one["rate"])
    if params:
        assert tree.optimization["loss"].dims == ("step",)
    if how != "AutoDelta":
        arviz_runs_on(tree, entry)


def arviz_runs_on(tree, entry):
    first = sorted(entry.latent)[0]
    assert len(arviz_stats.summary(tree, var_names=[first])) >= 1
    assert np.isfinite(arviz_stats.ess(tree, var_names=[first])[first]).all()
    arviz_stats.rhat(tree, var_names=[first])
    site = sorted(entry.dims)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few draws: of a high Pareto k
        loo = arviz_stats.loo(tree, var_name=site)
        table = arviz_stats.compare({"a": loo, "b": loo})
    assert np.isfinite(loo.elpd)
    assert len(table) == 2
