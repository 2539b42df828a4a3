"""Refuse observations and distributions that broadcast each other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    So do means ``(N,)`` with standard deviations ``(N, 1)``, and a mask or a scale of
    shape ``(N, 1)``. All else broadcasts as in NumPyro: an axis that only one of the
    two has, two axes of different lengths, which cannot both be the rows, and axes of
    plates.
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
    name, fn, observed = site["name"], site["fn"], jnp.shape(site["value"])
    base = _without_plates(fn)
    plates = {frame.dim for frame in site["cond_indep_stack"]}
    on_plates = {dim - fn.event_dim for dim in plates}
    # The first says more to the user, where it is wrong already.
    for given in (base.shape(), fn.shape()):
        if _pairs_rows(given, observed, on_plates, base.event_dim):
            raise ValueError(
                f"the site {name!r} compares every observation with every prediction: "
                f"its observations have shape {observed} and its distribution {given}, "
                f"which broadcast to {np.broadcast_shapes(given, observed)}. Drop the "
                "axis of length 1 of outputs, observations, scales or masks, by "
                '`[:, 0]` or with "scalar" as the out_size of the network. If all '
                "pairs are meant, put each of these axes on a plate."
            )
    # An axis that does not fit is an error of NumPyro's own.
    densities = observed[: max(len(observed) - fn.event_dim, 0)]
    scale = () if site["scale"] is None else jnp.shape(site["scale"])
    if _do_broadcast(densities, fn.batch_shape):
        densities = np.broadcast_shapes(densities, fn.batch_shape)
        if _pairs_rows(scale, densities, plates):
            raise ValueError(
                f"the site {name!r} multiplies every log density by every scale: its "
                f"scale has shape {scale} and its log densities {densities}. Drop the "
                "axis of length 1 of what `numpyro.handlers.scale` is given. If all "
                "pairs are meant, put each of these axes on a plate."
            )


def _pairs_rows(
    given: tuple[int, ...],
    rows: tuple[int, ...],
    on_plates: set[int],
    joint: int = 0,
) -> bool:
    """Whether one shape repeats the rows of another along an axis of their length.

    Args:
        given: The shape of a distribution or a scale.
        rows: That of the values that it meets.
        on_plates: The axes of plates.
        joint: How many axes of the distribution, the last ones, are one vector.
    """
    if not _do_broadcast(given, rows):
        return False
    ndim = max(len(given), len(rows))
    axes = list(enumerate(zip(_pad(given, ndim), _pad(rows, ndim), strict=True), -ndim))
    for length in set(rows) - {1}:
        repeated = {axis for axis, pair in axes if pair == (length, 1)}
        along = {
            axis
            for axis, (one, other) in axes
            if other == length and (one == 1 or axis < -joint)
        }
        if repeated and along and not repeated | along <= on_plates:
            return True
    return False


def _do_broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(one, other)
    except ValueError:
        return False
    return True


def _without_plates(fn: Distribution) -> Distribution:
    """The distribution before plates and masks expanded it."""
    while isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        fn = fn.base_dist
    return fn


def _pad(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return (1,) * (ndim - len(shape)) + shape
