"""The `param` sites of a model under MCMC: drawn once, whatever the chain."""

import copy
from typing import Any

import jax
from numpyro import handlers
from numpyro.infer.hmc import HMC

from pyrox_ppl.infer.flat_nuts import FlatNUTS


def hold_params(kernel: HMC, origin: Any, args: tuple, kwargs: dict[str, Any]) -> HMC:
    """A kernel whose model has the params, and mutable sites, that a key gives them.

    A kernel draws them when it is initialised, and a param with a random initial value
    is then another one in every chain, and wherever the kernel is initialised anew.

    Args:
        kernel: A kernel made from a model.
        origin: The key that the first chain is initialised by, so that the values are
            those of NumPyro's ``MCMC``.
        args: The arguments of the model.
        kwargs: The keyword arguments of the model.
    """
    model: Any = kernel.model
    seeded = handlers.seed(model, jax.random.split(origin)[1])
    at_start = handlers.substitute(seeded, substitute_fn=kernel._init_strategy)
    trace = handlers.trace(at_start).get_trace(*args, **kwargs)
    values = {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] in ("param", "mutable")
    }
    if not values:
        return kernel
    held = copy.copy(kernel)
    place = "_sites_model" if isinstance(kernel, FlatNUTS) else "_model"
    setattr(held, place, handlers.substitute(model, data=values))
    return held
