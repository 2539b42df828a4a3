"""A model at one of its draws: the trace, and the state that MCMC leaves in it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from pyrox_ppl.prediction._draw_shapes import check_draw


def held_by_mcmc(
    model: Callable, draws: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The values of ``param`` and ``mutable`` sites that NumPyro's MCMC samples with.

    A param has the value that the model gives it, or that was substituted. NumPyro runs
    the model once before it samples, and holds the state that this run leaves.

    Raises:
        ValueError: If they are random, or depend on the latent sites: where the run
            was is not kept.
    """
    found = []
    for seed, place in enumerate(((0, 0), (-1, -1))):
        at = {name: jnp.asarray(value[place]) for name, value in draws.items()}
        trace = trace_at(model, at, args, kwargs, seed)
        names = of_type(trace, "param") + of_type(trace, "mutable")
        found.append({name: trace[name]["value"] for name in names})
    first, last = found
    unknown = [name for name in first if not _are_equal(first[name], last[name])]
    if unknown:
        raise ValueError(
            f"the values of the param or mutable sites {unknown} are random, or depend "
            "on the latent sites, so the tree cannot know those that MCMC sampled "
            "with: give them, to_datatree(mcmc, ..., params={site: value}), or give "
            "each a fixed initial value before the run."
        )
    return first


def _are_equal(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def trace_at(
    model: Callable,
    draw: dict[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The sites of a model at one draw."""
    run = handlers.substitute(handlers.seed(model, seed), substitute_fn=_put(draw))
    return handlers.trace(run).get_trace(*args, **kwargs)


def _put(values: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """Put draws in place of sample sites; what is deterministic is computed."""

    def put(site: dict[str, Any]) -> Any:
        is_latent = site["type"] == "sample" and not site["is_observed"]
        if not is_latent or site["name"] not in values:
            return None
        check_draw(site, values[site["name"]])
        return values[site["name"]]

    return put


def of_type(trace: dict[str, Any], kind: str) -> tuple[str, ...]:
    """The names of the sites of one type."""
    return tuple(name for name, site in trace.items() if site["type"] == kind)
