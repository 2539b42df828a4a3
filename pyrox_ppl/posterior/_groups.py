"""The groups of a DataTree: what is computed for each, from draws, model and data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import xarray as xr
from jaxtyping import PRNGKeyArray

from pyrox_ppl.posterior._at_draw import held_by_mcmc
from pyrox_ppl.posterior._axes import DRAWS
from pyrox_ppl.posterior._dataset import dataset
from pyrox_ppl.posterior._guide import log_weights
from pyrox_ppl.posterior._hidden import check_hidden
from pyrox_ppl.posterior._marginal import Discrete
from pyrox_ppl.posterior._model import ModelSites, check_arguments, constant_data
from pyrox_ppl.posterior._passes import over_posterior, over_prior, prepared
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
    check_arguments(model, args, kwargs)
    check_hidden(model, args, kwargs)
    sites = ModelSites.of(prepared(model, found.params), found.draws, args, kwargs)
    params = _params(found, sites, model, args, kwargs)
    drawn_sites = {n: v for n, v in found.draws.items() if n not in sites.factors}
    latent = {name: drawn_sites[name] for name in sites.latent}
    given = {name: v for name, v in drawn_sites.items() if name in sites.observed}
    # What is deterministic may have been computed of other data.
    computed = list(sites.deterministic)
    predicted = [] if found.is_warmup else [n for n in sites.observed if n not in given]
    densities = [] if found.is_warmup else _chosen(log_likelihood, sites)
    with_lp = "lp" not in found.stats and not sites.has_discrete_latent and bool(latent)
    result = over_posterior(
        model,
        params,
        latent,
        args,
        kwargs,
        predictive_key,
        sites=sites,
        predicted=[*computed, *predicted],
        densities=densities,
        with_lp=with_lp,
    )
    predictive = result["predictive"]
    stats = dict(found.stats)
    if with_lp:
        stats["lp"] = result["lp"]
    drawn = found.guide
    own = {n: v for n, v in params.items() if sites.is_trained(n)}
    of_guide = {n: v for n, v in found.params.items() if n not in own}
    foreign = sorted(of_guide.keys() - drawn.trained) if drawn is not None else []
    if foreign:
        raise ValueError(
            f"the fit has trained values of {foreign}, which neither this guide nor "
            "the model has: give the guide that was trained, guide=svi.guide."
        )
    if (
        log_weight
        and with_lp
        and drawn is not None
        and drawn.has_density
        and not drawn.is_point
    ):
        weights = log_weights(model, drawn, found.params, args, kwargs)
        if weights is not None:
            stats["log_weight"] = weights[None]
    return {
        "posterior": {n: v for n, v in drawn_sites.items() if n not in given}
        | {name: predictive[name] for name in computed},
        "sample_stats": stats,
        "posterior_predictive": given | {name: predictive[name] for name in predicted},
        "log_likelihood": result["log_likelihood"],
        "log_prior": result["log_prior"],
        "observed_data": sites.observed,
        "constant_data": constant_data(model, args, kwargs, sites.observed),
        "params": own,
        "guide_params": of_guide,
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
    whole = prepared(model, found.params)
    out = {}
    if num_prior_samples:
        key = jax.random.fold_in(rng_key, 2)
        sites = ModelSites.of(whole, {}, args, kwargs, check=False)
        params = _params(found, sites, model, args, kwargs)
        prior = over_prior(model, params, args, kwargs, key, num_prior_samples)
        observed = {n: v for n, v in prior.items() if n in sites.observed}
        latent = {n: v for n, v in prior.items() if n not in observed}
        out["prior"] = dataset("prior", latent, sites)
        if observed:
            out["prior_predictive"] = dataset("prior_predictive", observed, sites)
    if predictions is not None:
        named = isinstance(predictions, Mapping)
        new_args: tuple = () if named else tuple(predictions)
        new_kwargs = dict(predictions) if named else {}
        check_arguments(model, new_args, new_kwargs)
        sites = ModelSites.of(whole, found.draws, new_args, new_kwargs, check=False)
        latent = {name: found.draws[name] for name in sites.latent}
        names = {name for name in sites.plates if name not in latent}
        result = over_posterior(
            model,
            _params(found, sites, model, args, kwargs),
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
        constants = constant_data(model, new_args, new_kwargs, sites.observed)
        if constants:
            name = "predictions_constant_data"
            out[name] = dataset(name, constants, sites)
    return out


def _params(
    found: Source,
    sites: ModelSites,
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """The trained values; after MCMC also those that it held where they were."""
    if found.attrs["inference"] != "MCMC" or not sites.trained:
        return found.params
    whole = prepared(model, found.params)
    return {**held_by_mcmc(whole, found.draws, args, kwargs), **found.params}


def _chosen(log_likelihood: bool | Sequence[str], sites: ModelSites) -> list[str]:
    """The observed sites whose log likelihood is computed."""
    behind, hindered = sites.discrete.behind, sites.discrete.hindered
    if isinstance(log_likelihood, bool):
        return [n for n in sites.observed if log_likelihood and not behind.get(n)]
    unknown = [name for name in log_likelihood if name not in sites.observed]
    if unknown:
        raise ValueError(
            f"log_likelihood names {unknown}, the observed sites are "
            f"{list(sites.observed)}."
        )
    for name in log_likelihood:
        if name in hindered:
            raise ValueError(
                f"the log likelihood of {name!r} needs the discrete latents "
                f"{list(behind[name])}, of which there are no draws, and they cannot "
                f"be summed out for one observation after the other: {hindered[name]}. "
                "Leave it out of log_likelihood, write the model with a mixture "
                "distribution, or draw the latents (NumPyro's DiscreteHMCGibbs)."
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
    nothing = Discrete({}, {}, {}, {})
    taken = frozenset(DRAWS)
    return ModelSites(
        latent=(),
        observed={},
        factors=(),
        masks={},
        inside={},
        deterministic=(),
        trained=(),
        has_discrete_latent=False,
        discrete=nothing,
        plates={},
        event_dims={},
        parameters={},
        taken=taken,
    )
