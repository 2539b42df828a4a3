"""Asks NumPyro's handlers what they would do with a site, before it is sent."""

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


def make_site(msg: dict[str, Any], site_type: str = "sample") -> dict[str, Any]:
    """Make the message of a site for a parameter whose law is not known yet."""
    # The `hide_fn` of a block may look at the law; nothing draws from it.
    law = dist.ImproperUniform(dist.constraints.real, (), msg["parameter"].shape)
    return {
        **msg,
        "type": site_type,
        "name": msg["parameter"].name,
        "fn": law,
        "value": None,
        "is_observed": False,
    }


def walk_handlers(
    site: dict[str, Any], stack: Sequence[Messenger] | None = None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield every handler that a site will reach, innermost first, and its message.

    Scopes rename the site on its way out; a ``block`` that hides it stops it.
    """
    heard = {**site, "cond_indep_stack": []}
    for handler in reversed(handler_stack() if stack is None else stack):
        if isinstance(handler, handlers.block) and handler.hide_fn(heard):
            return
        yield handler, heard
        if isinstance(handler, handlers.scope):
            handler.process_message(heard)


def ask_value(handler: Any, site: dict[str, Any]) -> Any:
    """Return the value that a NumPyro handler would give to a site, or None."""
    if isinstance(handler, handlers.do):
        # Its `process_message` would send a second site, so look at its data instead.
        given = handler.data or {}
        return given.get(site["name"]) if site["type"] == "sample" else None
    if isinstance(handler, handlers.condition | handlers.substitute | handlers.replay):
        asked = {**site, "infer": {}}
        handler.process_message(asked)
        return asked["value"]
    return None


def is_fixed(msg: dict[str, Any]) -> bool:
    """Whether ``condition`` or ``do`` would fix a parameter as a sample site."""
    return any(
        isinstance(handler, handlers.condition | handlers.do)
        and ask_value(handler, heard) is not None
        for handler, heard in walk_handlers(make_site(msg))
    )


def check_is_new(msg: dict[str, Any], site_type: str) -> None:
    """Raise if the site of a parameter would merge with an earlier site.

    A closed block of the model, or a block of the guide, may have made that one. It is
    then in the ``trace`` that records the model, or in the trace that it replays.
    """
    for handler, heard in walk_handlers(make_site(msg, site_type)):
        if isinstance(handler, handlers.trace | handlers.replay):
            before = handler.trace.get(heard["name"])
            replayed = isinstance(handler, handlers.replay)
            if before is not None and _are_different(msg, site_type, before, replayed):
                raise ValueError(_describe_clash(heard["name"], msg, before, replayed))


def _are_different(
    msg: dict[str, Any], site_type: str, before: dict[str, Any], replayed: bool
) -> bool:
    """Whether two sites of one name are different variables."""
    stored = before.get("stored")
    if site_type != "param":
        # A sample site of a guide is meant to be the model's site of that name.
        return not replayed
    if before["type"] != "param":
        # `lift` turns every param, including this one, into a sample site.
        lifted = any(isinstance(handler, handlers.lift) for handler in handler_stack())
        return not (replayed or (lifted and stored is msg["stored"]))
    if stored is None:
        return False  # the user's own `numpyro.param`, shared on purpose
    traced = isinstance(stored, Tracer) or isinstance(msg["stored"], Tracer)
    if replayed and traced and stored.shape == msg["stored"].shape:
        return False  # the model and the guide may hold two tracers of one array
    return stored is not msg["stored"] or _plate(before) != _plate(msg)


def _plate(msg: dict[str, Any]) -> str | None:
    return getattr(msg.get("plate"), "name", None)


def _describe_clash(
    name: str, msg: dict[str, Any], before: dict[str, Any], replayed: bool
) -> str:
    """Word the error about two sites of one name."""
    where = "the guide and the model" if replayed else "two blocks of one model"
    first, second = before.get("stored"), msg["stored"]
    own = np.shape(before["value"]) if first is None else first.shape
    if first is second:
        fix = (
            "To use one set of values twice, read the module once, "
            "`net = bind(module, name)`, or put both calls inside one block. For two "
            "sets of values"
        )
    else:
        fix = (
            "The two hold different arrays but would get the same values. If they are "
            "meant to be one module, make it once, outside the model; otherwise"
        )
    return (
        f"{name!r} becomes a site twice, in {where}: first of shape {own} "
        f"({before['type']}), then of shape {second.shape}. {fix} give each its own "
        "name, by `bind(module, name)` or by calling it inside `with scope(name):`."
    )


@contextlib.contextmanager
def stand_at_read(
    here: int, own: str, full: str, *, skip: type, plate: Any = None
) -> Iterator[None]:
    """Run the body at the read of a parameter, as if the block at `here` were absent.

    Handlers inside the block act on the body's sites as on the parameter's own site.
    The scopes among them prefix the parameter's name `own` to `full`. A site of the
    body whose name starts with either gets these prefixes once; other sites get none.
    Handlers of the type `skip`, and every plate except `plate`, leave the stack.
    """
    before = handler_stack()
    inside = (h for h in before[here:] if not isinstance(h, skip))
    scoped = (_ScopeOwnSites(h) if isinstance(h, handlers.scope) else h for h in inside)
    stack = [*before[:here], *scoped, _MarkOwnSites(own, full)]
    with use_handlers([h for h in stack if not is_plate(h) or h is plate]):
        yield


class _MarkOwnSites(Messenger):
    """Marks the sites that start with a parameter's name; strips its scope prefixes."""

    def __init__(self, own: str, full: str) -> None:
        super().__init__()
        self._own, self._full = own, full

    def process_message(self, msg: Any) -> None:
        name = msg.get("name") or ""
        for prefix in (self._full, self._own):
            rest = name.removeprefix(prefix)
            if rest != name and rest[:1] in ("", ".", "_"):
                msg["name"] = self._own + rest
                msg["belongs_to_parameter"] = True
                return


class _ScopeOwnSites(Messenger):
    """Applies a scope to the marked sites only, which gives them their prefix again."""

    def __init__(self, scope: Messenger) -> None:
        super().__init__()
        self._scope = scope

    def process_message(self, msg: Any) -> None:
        if msg.get("belongs_to_parameter"):
            self._scope.process_message(msg)
