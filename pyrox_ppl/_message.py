"""One read: the message that asks for a parameter, and the site that it becomes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.primitives import Messenger, apply_stack
from numpyro.util import identity

from pyrox_ppl._numpyro import handler_stack, use_handlers
from pyrox_ppl._parameter import Read


class _Drawable(Messenger):
    """Raises if a site is to be drawn, and no handler has given it a PRNG key."""

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or msg["value"] is not None:
            return
        if msg["kwargs"].get("rng_key") is None:
            raise ValueError(
                f"{msg['name']!r} is a sample site, but no NumPyro handler can give it "
                "a value: run this inside a model, or in "
                "`with numpyro.handlers.seed(rng_seed=0):`."
            )


def read_value(read: Read, plate: Any) -> jax.Array:
    """The answer to a read, with the parameter's shape and dtype.

    The message asks the handlers, the innermost first, what the parameter is. If one
    makes it a site, that site is then sent from the innermost handler on, as
    ``numpyro.sample`` or ``param`` would send it from where the read stands: so every
    NumPyro handler acts on it, inside and outside the block that made it.
    """
    parameter, stored, _ = read
    message: dict[str, Any] = {
        "type": "parameter",
        "name": parameter.name,
        "fn": identity,
        "args": (stored,),
        "kwargs": {},
        "value": None,
        "scale": None,
        "cond_indep_stack": [],
        "infer": {},
        "parameter": parameter,
        "stored": stored,
        "plate": plate,
    }
    with _reading(plate):
        for handler in reversed(handler_stack()):
            handler.process_message(message)
            if message["type"] != "parameter" or message["value"] is not None:
                break
        # What `numpyro.handlers.block` hides is the site, not the question.
        message.pop("stop", None)
        if message["type"] != "parameter":
            message["name"] = parameter.name  # scopes give their prefixes again
            apply_stack(message)
        elif message["value"] is None:
            message["value"] = stored
    for handler in handler_stack():
        watch = getattr(handler, "parameter_was_read", None)
        if watch is not None:
            watch(parameter, message)
    value = jnp.asarray(message["value"])
    shapes = [parameter.shape]
    if plate is not None:
        shapes.append(
            (plate.subsample_size,) + (1,) * (-plate.dim - 1) + parameter.shape
        )
    if value.shape not in shapes:
        raise ValueError(
            f"the value for {parameter.name!r} has shape {value.shape}, but the "
            f"parameter has shape {shapes[-1]}. If it was substituted, it comes from "
            "another module; a prior given to `lift` must have the parameter's shape; "
            "a `mask` of the data must not stand around the read: "
            "`net = bind(module, name)` before it."
        )
    if value is stored and message["type"] != "parameter":
        # A site that holds the stored value: handlers tell what is read by identity.
        value = jnp.copy(value)
    # NumPyro draws float64 under x64, and float32 for bfloat16. The handler that
    # answered holds this message: a second read gets the cast value, too.
    message["value"] = value = value.astype(parameter.dtype)
    return value


@contextlib.contextmanager
def _reading(plate: Any) -> Iterator[None]:
    """Take every plate but the one that was asked for off NumPyro's stack.

    So none multiplies a site of the parameter, nor one that a prior or ``reparam``
    makes for it: NumPyro's ``infer={"block_plates": ...}`` gets lost on the way.
    """
    stack = [h for h in handler_stack() if not is_plate(h) or h is plate]
    if stack and getattr(stack[0], "entered_at", None) is not None:
        # Nothing of NumPyro's stands outside the blocks that could draw.
        stack.insert(0, _Drawable())
    with use_handlers(stack):
        yield


def is_plate(handler: Any) -> bool:
    """Whether a handler is a plate; funsor's is another class."""
    return hasattr(handler, "subsample_size")
