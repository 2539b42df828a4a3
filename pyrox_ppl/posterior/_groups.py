"""The groups of a DataTree: what is computed for each, from draws, model and data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import xarray as xr
from jaxtyping import PRNGKeyArray
from numpyro import handlers

from pyrox_ppl.infer.full_data import full_data
from pyrox_ppl.posterior._dataset import dataset
from pyrox_ppl.posterior._guide import log_weights
from pyrox_ppl.posterior._model import ModelSites, constant_data
from pyrox_ppl.posterior._passes import over_posterior, over_prior
from pyrox_ppl.posterior._source import Source


def of_posterior(
    found: Source,
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    rng_key: PRNGKeyArray,
    predictive_key: PRNGKeyArray,
    log_likelihood: bool | Sequence[str],
    log_weight: bool,
) -> tuple[dict[str, Any], ModelSites]:
    """The groups that stand on the draws and the data."""
    given_model, model = model, prepared(model, found.params, rng_key)
    sites = ModelSites.of(model, found.draws, args, kwargs)
    drawn_sites = {n: v for n, v in found.draws.items() if n not in sites.factors}
    latent = {name: drawn_sites[name] for name in sites.latent}
    given = {name: v for name, v in drawn_sites.items() if name in sites.observed}
    densities = _chosen(log_likelihood, sites)
    computed = [name for name in sites.deterministic if name not in found.draws]
    with_lp = "lp" not in found.stats and not sites.has_discrete_latent and bool(latent)
    if found.is_warmup:
        densities, computed = [], []
    result = over_posterior(
        model,
        latent,
        args,
        kwargs,
        predictive_key,
        sites=sites,
        predicted=[*computed, *(n for n in sites.observed if n not in given)],
        densities=densities,
        with_lp=with_lp,
    )
    predictive = result["predictive"]
    stats = dict(found.stats)
    if with_lp:
        stats["lp"] = result["lp"]
    drawn = found.guide
    if log_weight and drawn is not None and not drawn.is_point and with_lp:
        weights = log_weights(model, drawn, found.params, args, kwargs)
        if weights is not None:
            stats["log_weight"] = weights[None]
    own = sites.params if found.params else {}
    return {
        "posterior": {n: v for n, v in drawn_sites.items() if n not in given}
        | {name: predictive[name] for name in computed},
        "sample_stats": stats,
        "posterior_predictive": given
        | {n: predictive[n] for n in sites.observed if n not in given},
        "log_likelihood": result["log_likelihood"],
        "log_prior": result["log_prior"],
        "observed_data": sites.observed,
        "constant_data": constant_data(given_model, args, kwargs, sites.observed),
        "params": own,
        "guide_params": {n: v for n, v in found.params.items() if n not in own},
    }, sites


def on_request(
    found: Source,
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    rng_key: PRNGKeyArray,
    num_prior_samples: int,
    predictions: tuple | Mapping[str, Any] | None,
) -> dict[str, xr.Dataset]:
    """The prior's groups and those of new inputs, where they were asked for."""
    given_model, model = model, prepared(model, found.params, rng_key)
    out = {}
    if num_prior_samples:
        key = jax.random.fold_in(rng_key, 2)
        prior = over_prior(model, args, kwargs, key, num_prior_samples)
        sites = ModelSites.of(model, prior, args, kwargs, check=False)
        observed = {n: v for n, v in prior.items() if n in sites.observed}
        latent = {n: v for n, v in prior.items() if n not in observed}
        out["prior"] = dataset("prior", latent, sites)
        if observed:
            out["prior_predictive"] = dataset("prior_predictive", observed, sites)
    if predictions is not None:
        named = isinstance(predictions, Mapping)
        new_args: tuple = () if named else tuple(predictions)
        new_kwargs = dict(predictions) if named else {}
        sites = ModelSites.of(model, found.draws, new_args, new_kwargs, check=False)
        latent = {name: found.draws[name] for name in sites.latent}
        names = {name for name in sites.plates if name not in latent}
        result = over_posterior(
            model,
            latent,
            new_args,
            new_kwargs,
            jax.random.fold_in(rng_key, 3),
            sites=sites,
            predicted=sorted(names),
            densities=[],
            with_lp=False,
        )
        out["predictions"] = dataset("predictions", result["predictive"], sites)
        constants = constant_data(given_model, new_args, new_kwargs, sites.observed)
        if constants:
            name = "predictions_constant_data"
            out[name] = dataset(name, constants, sites)
    return out


def prepared(
    model: Callable, params: dict[str, Any], rng_key: PRNGKeyArray
) -> Callable:
    """The model on all of its data, with trained parameters and a seed."""
    whole = handlers.substitute(full_data(model), data=params)
    return handlers.seed(whole, jax.random.fold_in(rng_key, 1))


def _chosen(log_likelihood: bool | Sequence[str], sites: ModelSites) -> list[str]:
    """The observed sites whose log likelihood is computed."""
    if isinstance(log_likelihood, bool):
        all_of_them = log_likelihood and not sites.has_undrawn_latent
        return list(sites.observed) if all_of_them else []
    unknown = [name for name in log_likelihood if name not in sites.observed]
    if unknown:
        raise ValueError(
            f"log_likelihood names {unknown}, the observed sites are "
            f"{list(sites.observed)}."
        )
    return list(log_likelihood)


def of_warmup(warmup: Any, sites: ModelSites) -> dict[str, xr.Dataset]:
    if warmup is None:
        return {}
    if isinstance(warmup, xr.DataTree):
        groups = [name for name in warmup.children if name.startswith("warmup_")]
        if not groups:
            raise ValueError(
                "warmup must be the tree that to_datatree made straight after "
                "mcmc.warmup(..., collect_warmup=True); this one has the groups "
                f"{list(warmup.children)}."
            )
        return {name: warmup[name].to_dataset() for name in groups}
    return {"warmup_posterior": dataset("warmup_posterior", dict(warmup), sites)}


def no_sites() -> ModelSites:
    """What is known of a model that is not there."""
    return ModelSites((), {}, (), {}, (), {}, False, False, {}, {}, {})
