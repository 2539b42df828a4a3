"""Importance weights of a guide's draws: how well the guide fits the posterior."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from pyrox_ppl.posterior._guide import GuideDraws
from pyrox_ppl.prediction._loop import CHUNK_BYTES, bytes_of, even_size
from pyrox_ppl.prediction._model_call import ModelCall
from pyrox_ppl.prediction._precision import in_double


def log_weights(call: ModelCall, drawn: GuideDraws) -> np.ndarray | None:
    r"""Log importance weights :math:`\log p(y, \theta) - \log q(\theta)` in float64.

    The model and the guide run in their own dtype, as they do everywhere else; the
    density of every site is then evaluated, and summed, in float64.

    Returns:
        The log weights; None if the guide is a point, or if it cannot say how dense a
        given draw is: a flow that has no inverse (``AutoBNAFNormal``), or a guide that
        is a point when it is called (``AutoLaplaceApproximation``).

    **Shapes**: ``(draw,)``.

    References:
        Yao, Vehtari, Simpson and Gelman, "Yes, but did it work?: Evaluating variational
        inference", ICML 2018.
    """
    if drawn.is_point or not drawn.has_density:
        return None
    own_x64 = bool(jax.config.jax_enable_x64)
    # Arguments of the program: XLA slowly evaluates constants while it compiles.
    arrays, static = eqx.partition(dict(call.params), eqx.is_array)
    arrays = jax.tree.map(jnp.asarray, arrays)

    def sample_sites(run: Callable, data: dict[str, Any]) -> list[dict[str, Any]]:
        seeded = handlers.seed(handlers.substitute(run, data=data), 0)
        trace = handlers.trace(seeded).get_trace()
        return [site for site in trace.values() if site["type"] == "sample"]

    def log_weight(random: dict[str, jax.Array], arrays: Any) -> jax.Array:
        # A log joint of 10^5 nats has a rounding error of 0.01 nats in float32, and the
        # sum over data and parameters more: about as much as the weights of two draws
        # differ, which is all that the Pareto fit (PSIS) looks at. But the values must
        # be those that the model sees elsewhere, so only the densities are in float64.
        with jax.enable_x64(own_x64):
            own = dataclasses.replace(call, params=eqx.combine(arrays, static))
            run_guide, run_model = own.run_guide(drawn.guide), own.run
            guide_sites = [
                site
                for site in sample_sites(run_guide, random)
                if not site["is_observed"]
            ]
            values = {site["name"]: site["value"] for site in guide_sites}
            model_sites = sample_sites(run_model, values)
        # q is the density that the draws were taken from, whatever scale the guide
        # gives it in the ELBO; a scale in the model is part of the joint density.
        log_q = sum(jnp.sum(_log_prob(site)) for site in guide_sites)
        log_p = sum(jnp.sum(_scale(site) * _log_prob(site)) for site in model_sites)
        return jnp.asarray(log_p - log_q)

    number = len(next(iter(drawn.random.values())))
    # In chunks: a second copy of all draws may not fit into memory.
    size = even_size(number, CHUNK_BYTES // max(1, bytes_of(drawn.random) // number))
    weights = np.empty(number)
    with jax.enable_x64(True):

        @jax.jit
        def loop(chunk: dict[str, jax.Array], arrays: Any) -> jax.Array:
            return jax.lax.map(lambda random: log_weight(random, arrays), chunk)

        try:
            for start in range(0, number, size):
                begin = min(start, number - size)
                where = slice(begin, begin + size)
                chunk = {name: value[where] for name, value in drawn.random.items()}
                weights[where] = loop(chunk, arrays)
        except NotImplementedError:
            return None
    return weights


def _log_prob(site: dict[str, Any]) -> jax.Array:
    """The log density of a site's value, event by event, in float64."""
    return jnp.asarray(in_double(site["fn"]).log_prob(in_double(site["value"])))


def _scale(site: dict[str, Any]) -> Any:
    return 1.0 if site["scale"] is None else in_double(site["scale"])
