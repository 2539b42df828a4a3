"""The `param` sites of a model under MCMC: drawn once, whatever the chain."""

from typing import Any

import jax
from numpyro import handlers
from numpyro.infer.hmc import HMC
from numpyro.primitives import Messenger
from numpyro.util import is_prng_key

from pyrox_ppl._numpyro import init_strategy, replace_model


class _Initial(Messenger):
    """Notes the values of param and mutable sites as they are before the run."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}

    def postprocess_message(self, msg: Any) -> None:
        """Note a value: of a mutable dictionary a copy, which the model will change."""
        if msg["type"] in ("param", "mutable"):
            value = msg["value"]
            self.values[msg["name"]] = dict(value) if isinstance(value, dict) else value


def hold_params(kernel: HMC, origin: Any, args: tuple, kwargs: dict[str, Any]) -> HMC:
    """A kernel whose model has the params, and mutable sites, that a key gives them.

    A kernel draws them when it is initialised, and a param with a random initial value
    is then another one in every chain, and wherever the kernel is initialised anew.

    Args:
        kernel: A kernel made from a model.
        origin: The key that the first chain is initialised by, or those of all chains:
            so the values are those of NumPyro's ``MCMC``.
        args: The arguments of the model.
        kwargs: The keyword arguments of the model.
    """
    model: Any = kernel.model
    # Here and not before: outside of a program an index would be one more.
    origin = origin if is_prng_key(origin) else origin[0]
    seeded = handlers.seed(model, jax.random.split(origin)[1])
    at_start = handlers.substitute(seeded, substitute_fn=init_strategy(kernel))
    initial = _Initial()
    with initial:
        at_start(*args, **kwargs)
    if not initial.values:
        return kernel
    return replace_model(kernel, handlers.substitute(model, data=initial.values))
