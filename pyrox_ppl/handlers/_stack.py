"""What NumPyro's handlers would do with a site, asked before it is sent."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro import handlers
from numpyro.primitives import Messenger

from pyrox_ppl._message import is_plate
from pyrox_ppl._numpyro import handler_stack, use_handlers


def site_of(msg: dict[str, Any], site_type: str = "sample") -> dict[str, Any]:
    """A parameter's message as that of a site whose law is not known yet."""
    law = dist.ImproperUniform(dist.constraints.real, (), msg["parameter"].shape)
    return {
        **msg,
        "type": site_type,
        "name": msg["parameter"].name,
        "fn": law,
        "value": None,
        "is_observed": False,
    }


def heard_by(
    site: dict[str, Any], stack: Sequence[Messenger] | None = None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every handler that will hear of a site, the innermost first, and what it hears.

    Scopes rename it on its way out, and a ``block`` that hides it ends the way.
    """
    heard = {**site, "cond_indep_stack": []}
    for handler in reversed(handler_stack() if stack is None else stack):
        if isinstance(handler, handlers.block) and handler.hide_fn(heard):
            return
        yield handler, heard
        if isinstance(handler, handlers.scope):
            handler.process_message(heard)


def value_from(handler: Any, site: dict[str, Any]) -> Any:
    """The value that a NumPyro handler would give to a site, or None."""
    if isinstance(handler, handlers.do):
        given = handler.data or {}
        return given.get(site["name"]) if site["type"] == "sample" else None
    if isinstance(handler, handlers.condition | handlers.substitute | handlers.replay):
        asked = {**site, "infer": {}}
        handler.process_message(asked)
        return asked["value"]
    return None


def is_fixed(msg: dict[str, Any]) -> bool:
    """Whether ``condition`` or ``do`` would fix a parameter, were it a sample site."""
    return any(
        isinstance(handler, handlers.condition | handlers.do)
        and value_from(handler, heard) is not None
        for handler, heard in heard_by(site_of(msg))
    )


def check_is_new(msg: dict[str, Any], site_type: str) -> None:
    """Raise if the site of a parameter would be merged with one that was there before.

    The block that made that one may be closed, or have been the guide's: what they
    made is in the ``trace`` that records the model, and in the one that the model
    replays.
    """
    for handler, heard in heard_by(site_of(msg, site_type)):
        if isinstance(handler, handlers.trace | handlers.replay):
            before = handler.trace.get(heard["name"])
            replayed = isinstance(handler, handlers.replay)
            if before is not None and _clash(msg, site_type, before, replayed):
                raise ValueError(_two(heard["name"], msg, before, replayed))


def _clash(
    msg: dict[str, Any], site_type: str, before: dict[str, Any], replayed: bool
) -> bool:
    """Whether two sites of one name are two variables."""
    stored = before.get("stored")
    if site_type != "param":
        return not replayed
    if before["type"] != "param":
        lifted = any(isinstance(handler, handlers.lift) for handler in handler_stack())
        return not (replayed or (lifted and stored is msg["stored"]))
    if stored is None:
        return False
    traced = isinstance(stored, Tracer) or isinstance(msg["stored"], Tracer)
    if replayed and traced and stored.shape == msg["stored"].shape:
        return False  # a guide's argument and a model's may be the same array
    return stored is not msg["stored"] or _plate(before) != _plate(msg)


def _plate(msg: dict[str, Any]) -> str | None:
    return getattr(msg.get("plate"), "name", None)


def _two(name: str, msg: dict[str, Any], before: dict[str, Any], replayed: bool) -> str:
    """What to say of two sites of one name."""
    where = "the guide and the model" if replayed else "two blocks of one model"
    first, second = before.get("stored"), msg["stored"]
    own = np.shape(before["value"]) if first is None else first.shape
    if first is second:
        fix = (
            "To use one set of values twice read the module once, "
            "`net = bind(module, name)`, or keep both calls inside one block; for two "
            "sets"
        )
    else:
        fix = (
            "They hold different arrays, and would get the same values. If it is to be "
            "one module, make it once, outside; else"
        )
    return (
        f"{name!r} is made a site twice, in {where}: first of shape {own} "
        f"({before['type']}), then of shape {second.shape}. {fix} give each its own "
        "name, by `bind(module, name)` or by calling it inside `with scope(name):`."
    )


@contextlib.contextmanager
def at_the_read(
    here: int, own: str, full: str, *, skip: type, plate: Any = None
) -> Iterator[None]:
    """Run the body where a parameter is read, as if the block at `here` were not there.

    Handlers inside the block act on the sites that are made meanwhile as on the
    parameter's own. A scope among them gives its prefix to those that bear the
    parameter's name, which have it already, and to no other. Handlers of the type
    `skip` are left out, and so is every plate but `plate`.
    """
    before = handler_stack()
    inside = (h for h in before[here:] if not isinstance(h, skip))
    scoped = (_OwnScope(h) if isinstance(h, handlers.scope) else h for h in inside)
    stack = [*before[:here], *scoped, _Own(own, full)]
    with use_handlers([h for h in stack if not is_plate(h) or h is plate]):
        yield


class _Own(Messenger):
    """Marks the sites that bear a parameter's name; takes its prefixes off."""

    def __init__(self, own: str, full: str) -> None:
        super().__init__()
        self._own, self._full = own, full

    def process_message(self, msg: Any) -> None:
        name = msg.get("name") or ""
        for prefix in (self._full, self._own):
            rest = name.removeprefix(prefix)
            if rest != name and rest[:1] in ("", ".", "_"):
                msg["name"] = self._own + rest
                msg["of_parameter"] = True
                return


class _OwnScope(Messenger):
    """A scope for the sites of the parameter alone."""

    def __init__(self, scope: Messenger) -> None:
        super().__init__()
        self._scope = scope

    def process_message(self, msg: Any) -> None:
        if msg.get("of_parameter"):
            self._scope.process_message(msg)
