"""Block: what a handler remembers of its block, and how it answers a second read."""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jax.core import Tracer
from numpyro.primitives import Messenger

from pyrox_ppl._numpyro import handler_stack
from pyrox_ppl._parameter import Parameter
from pyrox_ppl._transform import TraceMark
from pyrox_ppl.handlers._stack import ask_value, make_site, walk_handlers


class Answer(NamedTuple):
    """The first read of a parameter, and the message with its value.

    The message alone is not enough, because ``numpyro.handlers.reparam`` strips it.

    Attributes:
        stored: The array that the module holds.
        plate: The plate that ``bind`` was given, or None.
        message: The message, whose ``"value"`` is the answer.
        inside: The handlers between the block and the read.
    """

    stored: Any
    plate: Any
    message: dict[str, Any]
    inside: tuple[Messenger, ...]


@dataclasses.dataclass
class Block:
    """What a handler remembers between the entry and the end of its block.

    Attributes:
        entered_at: The JAX trace at the entry.
        cleanup: Undoes what the entry changed.
        prepared: What the handler made for the block.
        parameters: Every parameter that reached the handler, by name.
        answers: The first reads that the handler answered, by name.
        matched_globs: The globs of ``where`` that matched a parameter.
        taken_by: The handler further in that took a parameter, by its name.
        bound_modules: The classes of modules that were already bound.
    """

    entered_at: TraceMark
    cleanup: contextlib.ExitStack
    prepared: Any
    parameters: dict[str, Parameter] = dataclasses.field(default_factory=dict)
    answers: dict[str, Answer] = dataclasses.field(default_factory=dict)
    matched_globs: set[str] = dataclasses.field(default_factory=set)
    taken_by: dict[str, str] = dataclasses.field(default_factory=dict)
    bound_modules: set[str] = dataclasses.field(default_factory=set)


def describe_parameters(block: Block) -> str:
    """List what the block read and what it missed, for an error message."""
    text = "No parameter was read inside it. "
    if block.parameters:
        rows = [
            " ".join(
                (f"  {p.name} {p.shape} {p.role}", *map("= {}".format, p.names[1:]))
            )
            for p in block.parameters.values()
        ]
        text = "\n".join(["The parameters read inside it:", *rows, ""])
    elif block.taken_by:
        text = ""
    if block.taken_by:
        rows = [f"  {name} by {label}" for name, label in block.taken_by.items()]
        text += "\n".join(["A block further in took:", *rows, ""])
    if block.bound_modules:
        names = ", ".join(sorted(block.bound_modules))
        text += (
            f"Already bound, and so not read again: {names}. A module stays bound "
            "after its block has ended. "
            "`module_from_mean(module, {}, params=fit.params)` makes an unbound module "
            "with trained values. "
        )
    return text


def recall(msg: dict[str, Any], first: Answer, here: int) -> None:
    """Answer a second read with the first value; outer handlers do not see it."""
    if msg["stored"] is first.stored and msg["plate"] is not first.plate:
        ways = " and ".join(map(_describe_plate, (first.plate, msg["plate"])))
        raise ValueError(
            f"{msg['name']!r} is read twice in this block, {ways}: these are different "
            "values. Give each its own name, by `bind(module, name, plate=...)` or by "
            "calling it inside `with scope(name):`."
        )
    if msg["stored"] is not first.stored:
        raise ValueError(
            f"two different modules read their parameters under the same name "
            f"{msg['name']!r}: one of shape {first.stored.shape}, one of shape "
            f"{msg['stored'].shape}. Give each its own name, by `bind(module, name)` "
            "or by calling it inside `with scope(name):`."
        )
    msg["value"] = value = first.message["value"]
    site_type = "param" if first.message["type"] == "param" else "sample"
    site = make_site(msg, site_type)
    for handler, heard in walk_handlers(site, handler_stack()[here + 1 :]):
        # A handler that also enclosed the first read has already acted on the value.
        if not any(handler is other for other in first.inside):
            given = ask_value(handler, heard)
            if given is not None and not _is_same(given, value):
                raise ValueError(
                    f"{msg['name']!r} already has a value from its first read in this "
                    f"block, but the `{type(handler).__name__}` around this read gives "
                    "it another. Put that handler around both reads, or give this "
                    "read a block or a `scope` of its own."
                )


def _describe_plate(plate: Any) -> str:
    return "without a plate" if plate is None else f"with plate={plate.name!r}"


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are certainly the same."""
    if isinstance(one, Tracer) or isinstance(other, Tracer):
        return one is other
    return np.array_equal(one, other)
