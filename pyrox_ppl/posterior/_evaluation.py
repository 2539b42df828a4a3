"""One pass over the draws: predictions, log densities and the log joint of each."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import biject_to

from pyrox_ppl.posterior._model_sites import ModelSites
from pyrox_ppl.prediction._draws import CHAIN
from pyrox_ppl.prediction._loop import keys_of_draws, map_draws
from pyrox_ppl.prediction._model_call import ModelCall
from pyrox_ppl.prediction._precision import in_single
from pyrox_ppl.prediction._site_values import site_function
from pyrox_ppl.prediction._uncertainty import LawMeans, law_at_draw


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to compute at every draw.

    Attributes:
        predicted: Observed and deterministic sites to draw.
        likelihoods: Observed sites whose log likelihood to compute.
        priors: Latent sites whose log prior to compute.
        laws: Observed sites whose class probabilities or moments to average.
        log_joint: Whether to compute the log joint density in unconstrained space.
    """

    predicted: Sequence[str] = ()
    likelihoods: Sequence[str] = ()
    priors: Sequence[str] = ()
    laws: Sequence[str] = ()
    log_joint: bool = False


def evaluate_draws(
    call: ModelCall,
    sites: ModelSites,
    latent: dict[str, np.ndarray],
    rng_key: PRNGKeyArray,
    wanted: Wanted,
) -> tuple[dict[str, Any], LawMeans]:
    """Evaluate the model at every draw, one after the other, in one program.

    Args:
        call: The model.
        sites: What is known of it.
        latent: The draws, with two sample axes.
        rng_key: The key of the predictions. Any other random site of the model is drawn
            anew for every draw.
        wanted: What to compute.

    Returns:
        ``predictive``, ``log_likelihood`` and ``log_prior`` by site, and ``lp``: arrays
        with two sample axes; and what the laws of sites say on average.
    """
    shape = _sample_shape(call, latent)
    number = shape[0] * shape[1]
    flat = {n: v.reshape(number, *v.shape[2:]) for n, v in latent.items()}
    if call.depends_on_chain:
        flat[CHAIN] = np.repeat(np.arange(shape[0]), shape[1])
    predict = site_function(call, wanted.predicted)

    def evaluate(draw_and_key: tuple[dict[str, Any], jax.Array]) -> tuple[Any, Any]:
        draw, key = draw_and_key
        own, draw = call.at(draw)

        def trace_with(undrawn: dict[str, Any]) -> dict[str, Any]:
            seeded = handlers.seed(own.run, key)
            put = handlers.substitute(seeded, data={**draw, **undrawn})
            return handlers.trace(put).get_trace()

        def log_density(name: str, axes: tuple[int, ...] = ()) -> jax.Array:
            """The log density of a site, summed over axes."""
            causes = sites.discrete.causes.get(name)
            if not causes:
                return jnp.sum(_log_prob(trace[name]), axis=axes)

            def log_densities(undrawn: dict[str, Any]) -> dict[str, jax.Array]:
                trace = trace_with(undrawn)
                # The axes stay, of size 1: the latents are aligned to them.
                own = jnp.sum(_log_prob(trace[name]), axis=axes, keepdims=True)
                return {cause: _log_prob(trace[cause]) for cause in causes} | {
                    name: own
                }

            marginal = sites.discrete.sum_out(name, log_densities)
            return jnp.squeeze(marginal, axis=axes)

        trace = trace_with({})
        out: dict[str, Any] = {
            "predictive": predict(draw_and_key) if wanted.predicted else {},
            "log_likelihood": {name: log_density(name) for name in wanted.likelihoods},
            "log_prior": {
                name: log_density(name, sites.axes_off_plates(name))
                for name in wanted.priors
            },
        }
        if wanted.log_joint:
            out["lp"] = _log_joint(trace)
        return out, {name: law_at_draw(trace[name]["fn"]) for name in wanted.laws}

    means = LawMeans()
    result = map_draws(
        evaluate,
        (flat, keys_of_draws(rng_key, number)),
        number,
        consume=means.add,
    )
    result = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), result)
    return result, means


def _sample_shape(call: ModelCall, latent: dict[str, np.ndarray]) -> tuple[int, int]:
    """The numbers of chains and of draws."""
    for value in latent.values():
        return value.shape[0], value.shape[1]
    for value in call.by_chain.values():
        return len(value), 1
    return 1, 1


def draw_prior(
    call: ModelCall, rng_key: PRNGKeyArray, number: int
) -> dict[str, np.ndarray]:
    """Draws of every site of the model from the prior, as one chain."""
    draws: Any = ({}, keys_of_draws(rng_key, number))
    for value in call.by_chain.values():  # the members of an ensemble take turns
        draws = ({CHAIN: np.arange(number) % len(value)}, draws[1])
    values = map_draws(site_function(call), draws, number)
    return jax.tree.map(lambda leaf: leaf[None], values)


def _log_prob(site: dict[str, Any]) -> jax.Array:
    # NumPyro compares NumPy observations with traced bounds in NumPy, which fails.
    fn, value = in_single((site["fn"], jnp.asarray(site["value"])))
    return jnp.asarray(fn.log_prob(value))


def _log_joint(trace: dict[str, Any]) -> jax.Array:
    """The log joint density of a run, of its latents in unconstrained space."""
    total = jnp.zeros(())
    for site in trace.values():
        if site["type"] == "sample":
            scale = 1.0 if site["scale"] is None else site["scale"]
            total += jnp.sum(scale * _log_prob(site))
            if not site["is_observed"]:
                # HMC moves in unconstrained space, where the density of u is that of
                # theta = T(u) times the volume element |dT / du|.
                transform = biject_to(site["fn"].support)
                value = site["value"]
                unconstrained = transform.inv(value)
                total += jnp.sum(transform.log_abs_det_jacobian(unconstrained, value))
    return total
