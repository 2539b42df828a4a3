"""Refuse observations and distributions that broadcast each other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)
from numpyro.primitives import Messenger

from pyrox_ppl._dependence import abstract_trace
from pyrox_ppl._full_data import is_factor, wrap_bodies
from pyrox_ppl._layer_state import CopyState


def check_observed_shapes(model: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    """Run a model abstractly under :class:`CheckObservedShapes`.

    Raises:
        ValueError: If the shapes of an observed site do not fit.
    """

    def run() -> None:
        # No handler outside sees this run, or loses a random number to it.
        with handlers.block(), CheckObservedShapes(), CopyState():
            abstract_trace(functools.partial(model, *args, **kwargs))

    jax.eval_shape(run)


class CheckObservedShapes(Messenger):
    """Refuse an observed site whose likelihood is an outer product.

    NumPyro broadcasts observations of shape ``(N,)`` and a distribution of shape
    ``(N, 1)`` to ``(N, N)``, which compares every observation with every prediction.
    All else broadcasts as in NumPyro: an axis that only one of the two has, two axes of
    different lengths, which cannot both be the rows, and axes of plates.
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        """Check an observed site, also within a ``scan`` or ``cond``.

        Raises:
            ValueError: If its shapes do not fit.
        """
        if msg["type"] == "control_flow":
            wrap_bodies(msg, CheckObservedShapes)
        if msg["type"] != "sample" or not msg["is_observed"] or is_factor(msg):
            return
        # After a scan its sites come once more, their steps stacked.
        if not msg.get("_control_flow_done"):
            _check(msg)


def _check(site: dict[str, Any]) -> None:
    fn, frames = site["fn"], site["cond_indep_stack"]
    observed = jnp.shape(site["value"])
    given = _shape_before_plates(fn) if frames else fn.shape()
    on_plates = {frame.dim - fn.event_dim for frame in frames}
    ndim = max(len(given), len(observed))
    pairs = zip(_pad(given, ndim), _pad(observed, ndim), strict=True)
    # The axes that each of the two has alone, by their length.
    of_fn: dict[int, list[int]] = {}
    of_value: dict[int, list[int]] = {}
    for axis, (one, other) in enumerate(pairs, start=-ndim):
        if one != other and 1 in (one, other):
            wider = of_fn if other == 1 else of_value
            wider.setdefault(max(one, other), []).append(axis)
    same = of_fn.keys() & of_value.keys()
    if all({*of_fn[n], *of_value[n]} <= on_plates for n in same):
        return
    try:
        both = jnp.broadcast_shapes(given, observed)
    except ValueError:
        return  # another axis does not fit, which is an error of its own
    raise ValueError(
        f"the site {site['name']!r} compares every observation with every prediction: "
        f"its observations have shape {observed} and its distribution {given}, which "
        f"broadcast to {both}. Drop the axis of length 1, by `[:, 0]` or with "
        '"scalar" as the out_size of the network. If all pairs are meant, put each of '
        "these axes on a plate."
    )


def _shape_before_plates(fn: Distribution) -> tuple[int, ...]:
    """The shape that a distribution had before plates and masks expanded it."""
    while isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        fn = fn.base_dist
    return fn.shape()


def _pad(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return (1,) * (ndim - len(shape)) + shape
