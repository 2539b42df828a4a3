"""Reads one parameter: the message that asks for it, and the site that it becomes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.primitives import Messenger, apply_stack
from numpyro.util import identity

from pyrox_ppl._numpyro import handler_stack, use_handlers
from pyrox_ppl._parameter import Read


class _RequireKey(Messenger):
    """Raises if a site must be drawn but no handler has given it a PRNG key."""

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or msg["value"] is not None:
            return
        if msg["kwargs"].get("rng_key") is None:
            raise ValueError(
                f"{msg['name']!r} is a sample site, but no NumPyro handler gives it a "
                "value: run this inside a model, or inside "
                "`with numpyro.handlers.seed(rng_seed=0):`."
            )


def read_value(read: Read, plate: Any, module: Any) -> jax.Array:
    """Read a parameter; return a value of its shape and dtype.

    The message asks the handlers, innermost first, what the parameter is. If one makes
    it a site, the site is then sent to all handlers, innermost first, as
    ``numpyro.sample`` or ``numpyro.param`` at the place of the read would send it. So
    every NumPyro handler acts on it, inside and outside the block that made it.
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
    with _hide_other_plates(plate):
        for handler in reversed(handler_stack()):
            handler.process_message(message)
            if message["type"] != "parameter" or message["value"] is not None:
                break
        # `numpyro.handlers.block` hides sites, so it must not stop the question. It
        # sees the site again below, and may hide it then.
        message.pop("stop", None)
        if message["type"] != "parameter":
            # The first pass added the scopes' prefixes; the second adds them again.
            message["name"] = parameter.name
            apply_stack(message)
        elif message["value"] is None:
            message["value"] = stored
    for handler in handler_stack():
        record_read = getattr(handler, "record_read", None)
        if record_read is not None:
            record_read(parameter, message, module)
    value = jnp.asarray(message["value"])
    shapes = [parameter.shape]
    if plate is not None:
        # NumPyro's plate at dim=-2 leaves one axis of size 1 to its right.
        shapes.append(
            (plate.subsample_size,) + (1,) * (-plate.dim - 1) + parameter.shape
        )
    if value.shape not in shapes:
        raise ValueError(
            f"the value for {parameter.name!r} has shape {value.shape}, but the "
            f"parameter has shape {shapes[-1]}. A substituted value may come from "
            "another module; a prior given to `lift` must have the parameter's shape; "
            "a `mask` for the data must not enclose the read: call "
            "`net = bind(module, name)` before it."
        )
    if value is stored and message["type"] != "parameter":
        # Handlers recognise a bound module's arrays by identity. If a site's value were
        # the stored array, the unbound module would look bound.
        value = jnp.copy(value)
    # NumPyro draws float64 under x64, and float32 for bfloat16. The cast value goes
    # into the message, from which the handler answers a second read.
    message["value"] = value = value.astype(parameter.dtype)
    return value


@contextlib.contextmanager
def _hide_other_plates(plate: Any) -> Iterator[None]:
    """Take every plate except the requested one off NumPyro's stack.

    No plate then multiplies the parameter's site, nor a site that a prior or
    ``reparam`` makes for it. NumPyro's ``infer={"block_plates": ...}`` does not reach
    the latter.
    """
    stack = [h for h in handler_stack() if not is_plate(h) or h is plate]
    if stack and getattr(stack[0], "entered_at", None) is not None:
        # No NumPyro handler outside the blocks could draw a value.
        stack.insert(0, _RequireKey())
    with use_handlers(stack):
        yield


def is_plate(handler: Any) -> bool:
    """Whether a handler is a plate: NumPyro's, or the separate class of funsor."""
    return hasattr(handler, "subsample_size")
