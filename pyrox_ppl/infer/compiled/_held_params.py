"""The `param` sites of a model under MCMC: drawn once for all chains."""

from typing import Any

import jax
from numpyro import handlers
from numpyro.primitives import Messenger
from numpyro.util import is_prng_key

from pyrox_ppl._numpyro import init_strategy, replace_model


class _InitialValues(Messenger):
    """Records the values of param and mutable sites as they are before the run."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}

    def postprocess_message(self, msg: Any) -> None:
        """Record a value; copy a mutable dictionary, because the model changes it."""
        if msg["type"] in ("param", "mutable"):
            value = msg["value"]
            self.values[msg["name"]] = dict(value) if isinstance(value, dict) else value


def hold_params(kernel: Any, origin: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Fix the params and mutable sites of a kernel's model at the values of one key.

    A kernel draws them whenever it is initialised. A param with a random initial value
    would differ between chains, and between the programs of one run, and the draws
    would come from a mixture of posteriors.

    Args:
        kernel: A kernel made from a model.
        origin: The key that initialises the first chain, or the keys of all chains.
            With it the values are those of NumPyro's ``MCMC``.
        args: The arguments of the model.
        kwargs: The keyword arguments of the model.
    """
    model: Any = kernel.model
    # Indexed inside the program: outside, the index would be a program of its own.
    origin = origin if is_prng_key(origin) else origin[0]
    seeded = handlers.seed(model, jax.random.split(origin)[1])
    at_start = handlers.substitute(seeded, substitute_fn=init_strategy(kernel))
    initial = _InitialValues()
    with initial:
        at_start(*args, **kwargs)
    if not initial.values:
        return kernel
    return replace_model(kernel, handlers.substitute(model, data=initial.values))
