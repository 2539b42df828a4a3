"""Draws joined with the call of their model, checked before anything is computed."""

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.primitives import Messenger

from pyrox_ppl._full_data import is_factor
from pyrox_ppl.posterior._model_sites import ModelSites, names_of_type
from pyrox_ppl.posterior._source import Source
from pyrox_ppl.prediction._model_call import ModelCall


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """Draws, and the call of the model that they belong to.

    Attributes:
        source: The draws, and what came with them.
        call: The model with its arguments and all of its trained values.
        sites: What a run of it at the first draw shows.
    """

    source: Source
    call: ModelCall
    sites: ModelSites

    @classmethod
    def join(cls, source: Source, call: ModelCall) -> "Fitted":
        """Check that draws and model belong together.

        Raises:
            ValueError: If the model cannot be called, hides latent sites or has others
                than were drawn, or if it has values that MCMC did not keep.
        """
        check_arguments(call)
        _check_hidden(call)
        sites = ModelSites.inspect(call, source.draws)
        if source.attrs["inference"] == "MCMC" and sites.trained:
            params = {**_values_held_by_mcmc(call, source.draws), **call.params}
            call = dataclasses.replace(call, params=params)
        return cls(source, call, sites)


def check_arguments(call: ModelCall) -> None:
    """Refuse arguments with which a model cannot be called.

    Raises:
        ValueError: If one is missing, or one too many.
    """
    try:
        inspect.signature(call.model).bind(*call.args, **call.kwargs)
    except TypeError as error:
        raise ValueError(
            f"the model cannot be called with these arguments: {error}. Give "
            "to_datatree(mcmc, *args, **kwargs) the arguments of mcmc.run (or svi.run),"
            " observations included; `predictions` takes the same without observations."
        ) from error


def _check_hidden(call: ModelCall) -> None:
    """Refuse a model with latent sites inside a ``handlers.block``.

    NumPyro wraps the model of an autoguide in one where discrete latents are summed
    out. A hidden site is still random, so every density would be the one at an
    arbitrary value of it.

    Raises:
        ValueError: If there are hidden latents.
    """
    model = call.model
    while isinstance(model, Messenger) and model.fn is not None:
        if isinstance(model, handlers.block):
            inside = dataclasses.replace(call, model=model.fn)
            hidden = _latent_sites(inside) - _latent_sites(call)
            if hidden:
                raise ValueError(
                    f"a `handlers.block` hides the latent sites {sorted(hidden)} of "
                    "this model, so its densities would be those at one arbitrary "
                    "value of them. The model of a guide may be such a one: pass the "
                    "model without the block, to_datatree(fit, ..., guide=guide, "
                    "model=model)."
                )
            return
        model = model.fn


def _latent_sites(call: ModelCall) -> set[str]:
    trace = handlers.trace(handlers.seed(call.run, 0)).get_trace()
    return {
        name
        for name, site in trace.items()
        if site["type"] == "sample" and not (site["is_observed"] or is_factor(site))
    }


def _values_held_by_mcmc(call: ModelCall, draws: dict[str, Any]) -> dict[str, Any]:
    """The values of ``param`` and ``mutable`` sites with which NumPyro's MCMC sampled.

    A param has the value that the model gives it, or that was substituted. NumPyro runs
    the model once before it samples, and keeps the state that this run leaves. The
    draws do not say where that run was: the values are known only if they are the same
    everywhere, for which the first and the last draw stand.

    Raises:
        ValueError: If they are random, or depend on the latent sites.
    """
    values = []
    for seed, place in enumerate(((0, 0), (-1, -1))):
        draw = {name: jnp.asarray(value[place]) for name, value in draws.items()}
        trace = call.trace(draw, seed)
        names = names_of_type(trace, "param", "mutable")
        values.append({name: trace[name]["value"] for name in names})
    first, last = values
    unknown = [name for name in first if not _are_equal(first[name], last[name])]
    if unknown:
        raise ValueError(
            f"the values of the param or mutable sites {unknown} are random or depend "
            "on the latent sites, so nothing says which values MCMC sampled with: "
            "pass them, to_datatree(mcmc, ..., params={site: value}), or give each a "
            "fixed initial value before the run."
        )
    return first


def _are_equal(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
