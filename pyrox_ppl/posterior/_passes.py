"""One pass over the draws: predictions, log densities and the log joint of each."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import biject_to

from pyrox_ppl.posterior._model import ModelSites
from pyrox_ppl.prediction._full_data import full_data
from pyrox_ppl.prediction._loop import keys_of_draws, map_draws
from pyrox_ppl.prediction._model import sites_at
from pyrox_ppl.prediction._trained import with_params


def over_posterior(
    model: Callable,
    params: dict[str, Any],
    latent: dict[str, np.ndarray],
    args: tuple,
    kwargs: dict[str, Any],
    rng_key: PRNGKeyArray,
    *,
    sites: ModelSites,
    predicted: Sequence[str],
    densities: Sequence[str],
    with_lp: bool,
) -> dict[str, Any]:
    """Evaluate the model at every draw, one after the other, in one program.

    Args:
        model: The model.
        params: Its trained values.
        latent: The draws, with two sample axes.
        args: The model's arguments.
        kwargs: Its keyword arguments.
        rng_key: The key of the predictions: whatever else is random in the model is
            drawn anew for every draw.
        sites: What is known of the model.
        predicted: Observed and deterministic sites to draw.
        densities: Observed sites of which to compute the log likelihood.
        with_lp: Whether to compute the log joint density in unconstrained space.

    Returns:
        ``predictive``, ``log_likelihood`` and ``log_prior`` by site, and ``lp``: arrays
        with two sample axes.
    """
    shape = next(iter(latent.values())).shape[:2] if latent else (1, 1)
    number = shape[0] * shape[1]
    flat = {n: v.reshape(number, *v.shape[2:]) for n, v in latent.items()}
    predict = sites_at(model, params, args, kwargs, predicted)
    whole = prepared(model, params)
    prior_of = [name for name in sites.latent if name not in sites.discrete.hindered]

    def one(of_draw: tuple[dict[str, Any], jax.Array]) -> dict[str, Any]:
        values, key = of_draw

        def sites_with(more: dict[str, Any]) -> dict[str, Any]:
            put = handlers.substitute(
                handlers.seed(whole, key), data={**values, **more}
            )
            return handlers.trace(put).get_trace(*args, **kwargs)

        def density(name: str, axes: tuple[int, ...] = ()) -> jax.Array:
            behind = sites.discrete.behind.get(name)
            if not behind:
                return jnp.sum(_density(trace[name]), axis=axes)

            def at(choice: dict[str, Any]) -> dict[str, jax.Array]:
                chosen = sites_with(choice)
                found = {latent: _density(chosen[latent]) for latent in behind}
                own = jnp.sum(_density(chosen[name]), axis=axes, keepdims=True)
                return {**found, name: own}

            return jnp.squeeze(sites.discrete.log_density(name, at), axis=axes)

        trace = sites_with({})
        out: dict[str, Any] = {
            "predictive": predict(of_draw) if predicted else {},
            "log_likelihood": {name: density(name) for name in densities},
            "log_prior": {
                name: density(name, sites.on_no_plate(name)) for name in prior_of
            },
        }
        if with_lp:
            out["lp"] = _log_joint(trace)
        return out

    result = map_draws(one, (flat, keys_of_draws(rng_key, number)), number)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), result)


def over_prior(
    model: Callable,
    params: dict[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
    rng_key: PRNGKeyArray,
    number: int,
) -> dict[str, np.ndarray]:
    """Draws of every site of the model from the prior, as one chain."""
    one = sites_at(model, params, args, kwargs)
    draws = ({}, keys_of_draws(rng_key, number))
    return jax.tree.map(lambda leaf: leaf[None], map_draws(one, draws, number))


def prepared(model: Callable, params: dict[str, Any]) -> Callable:
    """The model on all of its data, with trained values in place."""
    return full_data(with_params(model, params))


def _density(site: dict[str, Any]) -> jax.Array:
    return jnp.asarray(site["fn"].log_prob(site["value"]))


def _log_joint(trace: dict[str, Any]) -> jax.Array:
    """The log joint density of a run, of its latents in unconstrained space."""
    total = jnp.zeros(())
    for site in trace.values():
        if site["type"] == "sample":
            scale = 1.0 if site["scale"] is None else site["scale"]
            total += jnp.sum(scale * _density(site))
            if not site["is_observed"]:
                transform = biject_to(site["fn"].support)
                value = site["value"]
                unconstrained = transform.inv(value)
                total += jnp.sum(transform.log_abs_det_jacobian(unconstrained, value))
    return total
