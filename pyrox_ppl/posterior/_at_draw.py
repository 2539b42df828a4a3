"""A model at one of its draws: the trace, and the state that MCMC leaves in it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from pyrox_ppl.infer._draw_shapes import check_draw


def state_of_mcmc(
    model: Callable, draws: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The values of ``mutable`` sites that NumPyro's MCMC samples with.

    It runs the model once before it samples, and holds the state that this run leaves.

    Raises:
        ValueError: If that state depends on the latent sites: where the run was is not
            kept.
    """
    found = []
    for place in ((0, 0), (-1, -1)):
        at = {name: jnp.asarray(value[place]) for name, value in draws.items()}
        trace = trace_at(model, at, args, kwargs)
        found.append({n: trace[n]["value"] for n in of_type(trace, "mutable")})
    first, last = (jax.tree.leaves(state) for state in found)
    if not all(
        np.array_equal(one, other) for one, other in zip(first, last, strict=True)
    ):
        raise ValueError(
            f"the state in the mutable sites {list(found[0])} depends on the latent "
            "sites, so the tree cannot know the state that MCMC sampled with: give it, "
            "to_datatree(mcmc.get_samples(group_by_chain=True), ..., model=model, "
            "batch_ndims=2, params={site: state})."
        )
    return found[0]


def trace_at(
    model: Callable, draw: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The sites of a model at one draw."""
    run = handlers.substitute(handlers.seed(model, 0), substitute_fn=_put(draw))
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
