"""The groups of a DataTree: what is computed for each, from draws, model and data."""

import dataclasses
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import PRNGKeyArray

from pyrox_ppl.posterior._dataset import make_datasets, make_uncertainty
from pyrox_ppl.posterior._evaluation import Wanted, draw_prior, evaluate_draws
from pyrox_ppl.posterior._fitted import Fitted, check_arguments
from pyrox_ppl.posterior._guide import GuideDraws
from pyrox_ppl.posterior._log_weights import log_weights
from pyrox_ppl.posterior._model_sites import ModelSites
from pyrox_ppl.prediction._draws import CHAIN
from pyrox_ppl.prediction._model_call import ModelCall
from pyrox_ppl.prediction._uncertainty import LawMeans


def posterior_groups(
    fitted: Fitted,
    rng_key: PRNGKeyArray,
    log_likelihood: bool | Sequence[str],
    log_weight: bool,
) -> dict[str, xr.Dataset]:
    """The groups that rest on the draws and the data."""
    source, sites = fitted.source, fitted.sites
    values = {n: v for n, v in source.draws.items() if n not in sites.factors}
    given = {name: v for name, v in values.items() if name in sites.observed}
    # The draws of deterministic sites may have been computed from other data.
    computed = list(sites.deterministic)
    predicted = (
        [] if source.is_warmup else [n for n in sites.observed if n not in given]
    )
    latent = {name: values[name] for name in sites.latent}
    lacks_lp = "lp" not in source.stats and not sites.has_discrete_latent
    wanted = Wanted(
        predicted=[*computed, *predicted],
        likelihoods=[] if source.is_warmup else _likelihoods(log_likelihood, sites),
        priors=[n for n in sites.latent if n not in sites.discrete.obstacles],
        laws=predicted,
        log_joint=lacks_lp and bool(latent),
    )
    result, means = evaluate_draws(fitted.call, sites, latent, rng_key, wanted)
    predictive = result["predictive"]
    params = {**fitted.call.params, **fitted.call.by_chain}
    own = {n: v for n, v in params.items() if sites.is_trained(n)}
    guide_params = {n: v for n, v in params.items() if n not in own}
    _check_guide(source.guide, guide_params)
    stats = dict(source.stats)
    if wanted.log_joint:
        stats["lp"] = result["lp"]
        if log_weight and source.guide is not None:
            weights = log_weights(fitted.call, source.guide)
            stats |= {} if weights is None else {"log_weight": weights[None]}
    groups = {
        "posterior": {n: v for n, v in values.items() if n not in given}
        | {name: predictive[name] for name in computed},
        "sample_stats": stats,
        "posterior_predictive": given | {name: predictive[name] for name in predicted},
        "log_likelihood": result["log_likelihood"],
        "log_prior": result["log_prior"],
        "observed_data": sites.observed,
        "constant_data": _constant_data(fitted.call, sites.observed),
        "params": own,
        "guide_params": guide_params,
        "linearized_at": _mode(fitted),
    }
    by_chain = frozenset(fitted.call.by_chain)
    if fitted.call.num_modes > 1:
        by_chain |= frozenset(groups["linearized_at"])
    is_ensemble = source.is_ensemble
    datasets = make_datasets(groups, sites, by_chain, is_ensemble=is_ensemble)
    parts = _uncertainty(means, predicted, sites)
    if parts:
        datasets["uncertainty"] = make_uncertainty(parts, means.number, sites)
    return datasets


def _mode(fitted: Fitted) -> dict[str, Any]:
    """The values around which the model is linearised, parameters among them."""
    call, modes = fitted.call, []
    parameters = [n for n in fitted.sites.deterministic if n in fitted.sites.parameters]
    for chain in range(call.num_modes):
        # JAX arrays, because a scan indexes them with a traced step.
        mode = {n: jnp.asarray(value[chain]) for n, value in call.linearized_at.items()}
        trace = call.trace({**mode, CHAIN: chain} if call.depends_on_chain else mode)
        modes.append({**mode, **{name: trace[name]["value"] for name in parameters}})
    if len(modes) < 2:
        return modes[0] if modes else {}
    return jax.tree.map(lambda *values: np.stack(values), *modes)


def prior_groups(
    fitted: Fitted, rng_key: PRNGKeyArray, number: int
) -> dict[str, xr.Dataset]:
    """Draws from the prior."""
    sites = ModelSites.inspect(fitted.call, {}, check=False)
    # Around a mode, a linear model says nothing of the prior far away from it.
    own = dataclasses.replace(fitted.call, linearized_at={})
    prior = draw_prior(own, rng_key, number)
    observed = {n: v for n, v in prior.items() if n in sites.observed}
    latent = {n: v for n, v in prior.items() if n not in observed}
    return make_datasets({"prior": latent, "prior_predictive": observed}, sites)


def prediction_groups(
    fitted: Fitted, rng_key: PRNGKeyArray, inputs: tuple | Mapping[str, Any]
) -> dict[str, xr.Dataset]:
    """Draws for new inputs."""
    by_name = isinstance(inputs, Mapping)
    call = dataclasses.replace(
        fitted.call,
        args=() if by_name else tuple(inputs),
        kwargs=dict(inputs) if by_name else {},
    )
    check_arguments(call)
    sites = ModelSites.inspect(call, fitted.source.draws, check=False)
    latent = {name: fitted.source.draws[name] for name in sites.latent}
    names = sorted(name for name in sites.plates if name not in latent)
    result, _ = evaluate_draws(call, sites, latent, rng_key, Wanted(predicted=names))
    groups = {
        "predictions": result["predictive"],
        "predictions_constant_data": _constant_data(call, sites.observed),
    }
    return make_datasets(groups, sites, is_ensemble=fitted.source.is_ensemble)


def warmup_groups(warmup: Any, sites: ModelSites) -> dict[str, xr.Dataset]:
    """The draws of the warmup, from the tree that was made straight after it."""
    if not isinstance(warmup, xr.DataTree):
        return make_datasets({"warmup_posterior": dict(warmup)}, sites)
    groups = [name for name in warmup.children if name.startswith("warmup_")]
    if not groups:
        raise ValueError(
            "warmup must be the tree that to_datatree made straight after "
            "mcmc.warmup(..., collect_warmup=True); this one has the groups "
            f"{list(warmup.children)}."
        )
    return {name: warmup[name].to_dataset() for name in groups}


def _likelihoods(log_likelihood: bool | Sequence[str], sites: ModelSites) -> list[str]:
    """The observed sites whose log likelihood is computed."""
    causes, obstacles = sites.discrete.causes, sites.discrete.obstacles
    if isinstance(log_likelihood, bool):
        return [n for n in sites.observed if log_likelihood and not causes.get(n)]
    unknown = [name for name in log_likelihood if name not in sites.observed]
    if unknown:
        raise ValueError(
            f"log_likelihood names {unknown}, the observed sites are "
            f"{list(sites.observed)}."
        )
    for name in log_likelihood:
        if name in obstacles:
            raise ValueError(
                f"the log likelihood of {name!r} depends on the discrete latents "
                f"{list(causes[name])}, which were not drawn and cannot be summed out "
                f"for each observation by itself: {obstacles[name]}. Leave {name!r} "
                "out of log_likelihood, write the model with a mixture distribution, "
                "or draw the latents (NumPyro's DiscreteHMCGibbs)."
            )
    return list(log_likelihood)


def _uncertainty(
    means: LawMeans, predicted: Sequence[str], sites: ModelSites
) -> dict[str, dict[str, np.ndarray]]:
    """What the draws say of observed sites on average, by part and site."""
    parts = {"probability": means.probabilities, "mean": means.means}
    parts = {part: values for part, values in parts.items() if values}
    for name in predicted:
        # What an undrawn latent adds is neither noise of this site nor disagreement of
        # the draws.
        if not sites.discrete.causes.get(name):
            split = means.uncertainty(name)
            for part, values in (split._asdict() if split else {}).items():
                parts.setdefault(part, {})[name] = values
    return parts


def _check_guide(guide: GuideDraws | None, params: Collection[str]) -> None:
    """Refuse trained values that belong neither to the model nor to its guide."""
    own = guide.trained if guide is not None else params
    parts = tuple(f"{name}." for name in own)  # a site may be a tree of arrays
    foreign = sorted(n for n in params if n not in own and not n.startswith(parts))
    if foreign:
        raise ValueError(
            f"the fit has trained values of {foreign}, which neither this guide nor "
            "the model has: pass the guide that was trained, guide=svi.guide."
        )


def _constant_data(call: ModelCall, observed: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays among a model's arguments that are not observations, by name.

    Arrays in a tuple or a dictionary are named by their path, joined by dots. The
    parameters of a module are not data. Of a random key these are its numbers.
    """
    bound = inspect.signature(call.model).bind(*call.args, **call.kwargs)
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        dict(bound.arguments), is_leaf=lambda node: isinstance(node, eqx.Module)
    )
    # An observation is the argument itself. Where the model made a new array from its
    # argument (by jnp.asarray, say), only the values tell that it is the same.
    given = [leaf for _, leaf in leaves]
    remade = [
        np.asarray(data)
        for data in observed.values()
        if not any(leaf is data for leaf in given)
    ]
    constants = {}
    for path, leaf in leaves:
        number = isinstance(leaf, int | float) and not isinstance(leaf, bool)
        if not (number or eqx.is_array(leaf) or isinstance(leaf, np.ndarray)):
            continue
        is_observed = any(leaf is data for data in observed.values())
        array = np.asarray(_numbers_of(leaf))
        if not is_observed and not any(_are_equal(array, d) for d in remade):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            constants[name] = array
    return constants


def _numbers_of(leaf: Any) -> Any:
    is_array = isinstance(leaf, jax.Array)
    is_key = is_array and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _are_equal(value: np.ndarray, observation: np.ndarray) -> bool:
    return value.shape == observation.shape and np.array_equal(
        value, observation, equal_nan=value.dtype.kind == "f"
    )
