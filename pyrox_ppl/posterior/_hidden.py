"""Latent sites that a `block` around a model hides, and draws once for all draws."""

from collections.abc import Callable
from typing import Any

from numpyro import handlers
from numpyro.primitives import Messenger

from pyrox_ppl.prediction._full_data import is_factor


def check_hidden(model: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    """Refuse a model of which a ``block`` hides latent sites.

    Autoguides of a model whose discrete latents are summed out are made with one, and
    keep it as their model. What is hidden is random all the same, and every density
    would be that at one arbitrary value of it.

    Raises:
        ValueError: If there are hidden latents.
    """
    seen = model
    while isinstance(model, Messenger) and model.fn is not None:
        if isinstance(model, handlers.block):
            hidden = _latents(model.fn, args, kwargs) - _latents(seen, args, kwargs)
            if hidden:
                raise ValueError(
                    f"the model hides its latent sites {sorted(hidden)} in a "
                    "`handlers.block`, as that of a guide may, and its densities are "
                    "those at one arbitrary value of them: give the model without the "
                    "block, to_datatree(fit, ..., guide=guide, model=model)."
                )
            return
        model = model.fn


def _latents(model: Callable, args: tuple, kwargs: dict[str, Any]) -> set[str]:
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(*args, **kwargs)
    return {
        name
        for name, site in trace.items()
        if site["type"] == "sample" and not (site["is_observed"] or is_factor(site))
    }
