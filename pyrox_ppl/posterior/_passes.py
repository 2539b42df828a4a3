"""One pass over the draws: predictions, log densities and the log joint of each."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from numpyro.infer.util import potential_energy, unconstrain_fn

from pyrox_ppl.infer.loop import keys_of_draws, map_draws
from pyrox_ppl.infer.model_prediction import sites_at
from pyrox_ppl.posterior._model import ModelSites


def over_posterior(
    model: Callable,
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
        model: The model with a seed, its plates whole, trained parameters in place.
        latent: The draws, with two sample axes.
        args: The model's arguments.
        kwargs: Its keyword arguments.
        rng_key: The key of the predictions.
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
    predict = sites_at(model, {}, args, kwargs, predicted)

    def one(of_draw: tuple[dict[str, Any], jax.Array]) -> dict[str, Any]:
        values, _ = of_draw
        trace = handlers.trace(handlers.substitute(model, data=values)).get_trace(
            *args, **kwargs
        )
        out: dict[str, Any] = {
            "predictive": predict(of_draw) if predicted else {},
            "log_likelihood": {name: _density(trace[name]) for name in densities},
            "log_prior": {
                name: jnp.sum(_density(trace[name]), axis=sites.on_no_plate(name))
                for name in sites.latent
            },
        }
        if with_lp:
            unconstrained = unconstrain_fn(model, args, kwargs, values)
            energy = potential_energy(model, args, kwargs, unconstrained)
            out["lp"] = -jnp.asarray(energy)
        return out

    result = map_draws(one, (flat, keys_of_draws(rng_key, number)), number)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), result)


def over_prior(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    rng_key: PRNGKeyArray,
    number: int,
) -> dict[str, np.ndarray]:
    """Draws of every site of the model from the prior, as one chain."""
    one = sites_at(model, {}, args, kwargs)
    draws = ({}, keys_of_draws(rng_key, number))
    return jax.tree.map(lambda leaf: leaf[None], map_draws(one, draws, number))


def _density(site: dict[str, Any]) -> jax.Array:
    return jnp.asarray(site["fn"].log_prob(site["value"]))
