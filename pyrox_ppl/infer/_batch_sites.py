"""The random sites of a model on a minibatch, and what scales each of them."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from numpyro import handlers
from numpyro.primitives import Messenger

from pyrox_ppl._dependence import abstract_trace, find_dependence, mark
from pyrox_ppl._full_data import MarkIndices, arrays_by_site, wrap_bodies
from pyrox_ppl._layer_state import CopyState

ROWS = "rows of the batch"


class ScaledSite(NamedTuple):
    """A site, and what scales it.

    Attributes:
        message: NumPyro's record of it.
        causes: What it depends on, if it is observed: rows, indices, latents.
        plates: The plates around it: how many members each has, how many it takes.
        scale: The scale of both plates and handlers; NaN where it is not one number.
    """

    message: dict[str, Any]
    causes: set[str]
    plates: dict[str, tuple[int, int]]
    scale: float

    @property
    def drawn(self) -> dict[str, tuple[int, int]]:
        """The plates that take a part of their members."""
        return {name: args for name, args in self.plates.items() if args[0] != args[1]}

    @property
    def by_handlers(self) -> float:
        """The part of the scale that comes from no plate."""
        return self.scale / math.prod(one / few for one, few in self.drawn.values())


def sites_of_batch(
    model: Callable, batch: tuple, kwargs: dict[str, Any]
) -> dict[str, ScaledSite]:
    """The random sites of a model, from an abstract run."""
    trace: dict[str, dict[str, Any]] = {}
    plates = _Plates()

    def causes_and_results() -> tuple[dict[str, Any], dict[str, Any]]:
        found, causes = _run(model, batch, kwargs, plates)
        trace.update(found)
        sites = {name: s for name, s in found.items() if s["type"] == "sample"}
        latents = {
            name: site["value"]
            for name, site in sites.items()
            if not site["is_observed"] and isinstance(site["value"], Tracer)
        }
        observed = {name: site for name, site in sites.items() if site["is_observed"]}
        scales = {
            _scale_of(name): site["scale"]
            for name, site in sites.items()
            if isinstance(site["scale"], Tracer)
        }
        return causes | latents, arrays_by_site(observed) | scales

    causes = find_dependence(causes_and_results)
    numbers = _computed(
        [name for name in trace if causes.get(_scale_of(name)) == set()],
        model,
        batch,
        kwargs,
    )
    return {
        name: ScaledSite(
            site,
            causes.get(name, set()),
            plates.around(site),
            _number(numbers.get(name, site["scale"])),
        )
        for name, site in trace.items()
        if site["type"] == "sample"
    }


class _Plates(Messenger):
    """Notes how many members each plate has and takes, also within a ``scan``."""

    def __init__(
        self, fn: Callable | None = None, found: dict[str, Any] | None = None
    ) -> None:
        super().__init__(fn)
        self.found = {} if found is None else found

    def process_message(self, msg: dict[str, Any]) -> None:
        """Note a plate."""
        if msg["type"] == "control_flow":
            wrap_bodies(msg, functools.partial(_Plates, found=self.found))
        if msg["type"] == "plate":
            members, few = msg["args"]
            self.found[msg["name"]] = members, members if few is None else few

    def around(self, site: dict[str, Any]) -> dict[str, tuple[int, int]]:
        """The plates around a site."""
        names = [frame.name for frame in site["cond_indep_stack"]]
        return {name: self.found[name] for name in names if name in self.found}


def _run(
    model: Callable, batch: tuple, kwargs: dict[str, Any], plates: "_Plates"
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The sites of an abstract run; the marked rows, and the indices of each plate."""
    marked, indices = tuple(map(mark, batch)), MarkIndices()
    # No handler outside sees this run, or loses a random number to it.
    with handlers.block(), CopyState(), plates, indices:
        trace = abstract_trace(functools.partial(model, *marked, **kwargs))
    by_plate = {indices_of(name): i for name, i in indices.by_plate.items()}
    return trace, {ROWS: marked, **by_plate}


def _computed(
    names: list[str], model: Callable, batch: tuple, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The scales of sites that the model computes from numbers of its own."""
    if not names:
        return {}

    def scales() -> dict[str, Any]:
        trace, _ = _run(model, batch, kwargs, _Plates())
        return {name: trace[name]["scale"] for name in names}

    return jax.jit(scales)()


def _number(scale: Any) -> float:
    """A scale as a number; NaN if it is none: of data, of each value, or zero."""
    if isinstance(scale, Tracer):
        return math.nan
    numbers = np.unique(np.asarray(1.0 if scale is None else scale))
    return float(numbers[0]) if numbers.size == 1 and numbers[0] > 0 else math.nan


def indices_of(name: str) -> str:
    return f"indices of the plate {name}"


def _scale_of(name: str) -> str:
    return f"scale of the site {name}"
