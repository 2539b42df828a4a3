"""What a handler remembers of its block, and what it answers from that."""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jax.core import Tracer
from numpyro.primitives import Messenger

from pyrox_ppl._numpyro import handler_stack
from pyrox_ppl._parameter import Parameter
from pyrox_ppl._transform import TraceMark
from pyrox_ppl.handlers._stack import heard_by, site_of, value_from


class Answer(NamedTuple):
    """The first read of a parameter: what was read, and the message with its value.

    The message alone does not do: ``numpyro.handlers.reparam`` strips it.
    """

    stored: Any
    plate: Any
    message: dict[str, Any]
    inside: tuple[Messenger, ...]


@dataclasses.dataclass
class Block:
    """What a handler remembers between entering its block and leaving it."""

    entered_at: TraceMark
    cleanup: contextlib.ExitStack
    prepared: Any
    read: dict[str, Parameter] = dataclasses.field(default_factory=dict)
    answered: dict[str, Answer] = dataclasses.field(default_factory=dict)
    matched: set[str] = dataclasses.field(default_factory=set)
    taken: dict[str, str] = dataclasses.field(default_factory=dict)
    bound: set[str] = dataclasses.field(default_factory=set)


def list_parameters(block: Block) -> str:
    """The parameters that reached the handler, or did not, for an error message."""
    text = "No parameter was read inside it. "
    if block.read:
        rows = [
            " ".join(
                (f"  {p.name} {p.shape} {p.role}", *map("= {}".format, p.names[1:]))
            )
            for p in block.read.values()
        ]
        text = "\n".join(["The parameters read inside it:", *rows, ""])
    elif block.taken:
        text = ""
    if block.taken:
        rows = [f"  {name} by {label}" for name, label in block.taken.items()]
        text += "\n".join(["A block further in took:", *rows, ""])
    if block.bound:
        text += (
            f"Bound already, and so not read again: {', '.join(sorted(block.bound))}. "
            "A module stays bound when its block has ended. One with trained values "
            "that can be read again is "
            "`module_from_mean(module, {}, params=fit.params)`. "
        )
    return text


def recall(msg: dict[str, Any], first: Answer, here: int) -> None:
    """Answer a second read by the value of the first; none further out sees it."""
    if msg["stored"] is first.stored and msg["plate"] is not first.plate:
        ways = " and ".join(map(_in_plate, (first.plate, msg["plate"])))
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
    for handler, site in heard_by(site_of(msg, site_type), handler_stack()[here + 1 :]):
        if not any(handler is other for other in first.inside):
            given = value_from(handler, site)
            if given is not None and not _same(given, value):
                raise ValueError(
                    f"{msg['name']!r} was read before in this block, where it got its "
                    f"value; the `{type(handler).__name__}` around this read has "
                    "another one. Put that handler around both reads, or give this "
                    "read a block or a `scope` of its own."
                )


def _in_plate(plate: Any) -> str:
    return "without a plate" if plate is None else f"with plate={plate.name!r}"


def _same(one: Any, other: Any) -> bool:
    """Whether two values are known to be the same."""
    if isinstance(one, Tracer) or isinstance(other, Tracer):
        return one is other
    return np.array_equal(one, other)
