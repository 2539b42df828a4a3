"""Run a model on all of its data, and draw its observations anew."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.primitives import Messenger

from pyrox_ppl._dependence import abstract_trace, find_dependence, mark


def full_data(
    run: Callable[[], Any], run_model: Callable[[], Any] | None = None
) -> Callable[[], Any]:
    """Run a model or a guide on all of its data: nothing is subsampled or scaled.

    A plate whose random indices pick a minibatch (``with plate(...) as i: x[i]``, or
    ``numpyro.subsample``) takes all of its members instead, in order. A plate whose
    indices nothing uses has as many members as the data that the model was given: it
    keeps its size, and loses its scale.

    Args:
        run: The model or guide, its arguments bound.
        run_model: The model of a guide, which decides for the plates that both have.
    """
    picks = _picks_rows(run)
    if run_model is not None and picks:
        picks = {**picks, **_picks_rows(run_model)}
    picking = {name for name, picked in picks.items() if picked}

    def run_whole() -> Any:
        with _FullData(picking):
            return run()

    return run_whole


class _FullData(Messenger):
    """Make the given plates whole, and take the scale off the others."""

    def __init__(self, picking: set[str]) -> None:
        super().__init__()
        self._picking = picking
        self._factors: dict[str, float] = {}

    def process_message(self, msg: Any) -> None:
        """Take all members of a plate, or undo what one has scaled."""
        if msg["type"] == "plate":
            size, given = msg["args"]
            self._factors.pop(msg["name"], None)
            if msg["name"] in self._picking:
                msg["args"] = (size, size)
                msg["value"] = jnp.arange(size)
            elif given is not None and given != size:
                self._factors[msg["name"]] = size / given
                if given > size:  # NumPyro cannot draw that many
                    msg["value"] = jnp.arange(given)
        elif msg.get("scale") is not None:
            for frame in msg["cond_indep_stack"]:
                msg["scale"] = msg["scale"] / self._factors.get(frame.name, 1.0)


class MarkIndices(Messenger):
    """Give subsampled plates marked indices."""

    def __init__(self) -> None:
        super().__init__()
        self.by_plate: dict[str, list[jax.Array]] = {}

    def process_message(self, msg: Any) -> None:
        """Give a plate its first members."""
        if msg["type"] == "plate" and msg["args"][1] not in (None, msg["args"][0]):
            msg["value"] = mark(jnp.arange(msg["args"][1]))
            self.by_plate.setdefault(msg["name"], []).append(msg["value"])


def _picks_rows(run: Callable[[], Any]) -> dict[str, bool]:
    """For each subsampled plate whether any site depends on its indices."""
    names: set[str] = set()

    def indices_and_sites() -> tuple[dict[str, Any], dict[str, Any]]:
        # No handler outside sees this run, or loses a random number to it.
        indices = MarkIndices()
        with handlers.block(), indices:
            trace = abstract_trace(run)
        names.update(indices.by_plate)
        return indices.by_plate, arrays_by_site(trace)

    used = set().union(*find_dependence(indices_and_sites).values())
    return {name: name in used for name in names}


def arrays_by_site(trace: Mapping[str, Any]) -> dict[str, list[jax.Array]]:
    """All arrays that a model's sites hold; the indices of plates left out."""
    parts = ("value", "fn", "scale")
    return {
        name: [
            leaf
            for part in parts
            for leaf in jax.tree.leaves(site.get(part))
            if isinstance(leaf, jax.Array)
        ]
        for name, site in trace.items()
        if site["type"] != "plate"
    }


class redraw(Messenger):
    """Make every observation a draw; ``numpyro.factor`` stays what it is.

    NumPyro's ``uncondition`` draws a factor as if it were an observation, which changes
    the random numbers of all later sites; and it does not reach an observation inside a
    ``scan`` or ``cond`` before the value is fed back.
    """

    def process_message(self, msg: Any) -> None:
        """Forget an observation."""
        if msg["type"] == "control_flow":
            wrap_bodies(msg, redraw)
        if msg.get("_control_flow_done"):
            return
        if msg["type"] == "sample" and msg["is_observed"] and not is_factor(msg):
            msg["is_observed"] = False
            msg["value"] = None


def wrap_bodies(msg: dict[str, Any], handler: Callable[[Any], Any]) -> None:
    """Put a handler around the functions of a ``scan`` or ``cond``."""
    # scan(f, ...) or cond(pred, true_fun, false_fun, ...)
    bodies = (0,) if msg["fn"] is scan_wrapper else (1, 2)
    msg["args"] = tuple(
        handler(arg) if place in bodies else arg
        for place, arg in enumerate(msg["args"])
    )


def is_factor(site: dict[str, Any]) -> bool:
    """Whether a site is a ``numpyro.factor`` or another one that holds no data."""
    return bool(site["infer"].get("is_auxiliary"))
