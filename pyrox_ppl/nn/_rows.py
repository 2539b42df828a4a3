"""Callables of one vector, applied to every vector of a batch."""

from collections.abc import Callable
from typing import Any

import jax

from pyrox_ppl._bind import AbstractModule


def each_row(function: Callable, rows: jax.Array) -> Any:
    """Apply along the last axis: Equinox's own networks take one vector at a time.

    A single vector is not made a batch of one, and a module of this package, which
    takes any batch, gets the batch as it is. A network of a ``"scalar"`` takes the one
    entry of each vector.
    """
    name = getattr(function, "__name__", type(function).__name__)
    scalar = _takes_scalar(function)
    if scalar and rows.shape[-1] != 1:
        raise ValueError(
            f"{name} takes a scalar, so that each row must have 1 entry, and the shape "
            f"is {rows.shape}."
        )

    def one(row: jax.Array) -> Any:
        return function(row[0] if scalar else row)

    try:
        if rows.ndim == 1 or isinstance(function, AbstractModule):
            return one(rows)
        out = jax.vmap(one)(rows.reshape(-1, rows.shape[-1]))
    except TypeError as error:  # as JAX raises it for shapes that do not fit
        raise ValueError(
            f"{name} does not take a vector of shape {rows.shape[-1:]}, of which it is "
            f"given one at a time (the shape of all is {rows.shape}): {error}"
        ) from error
    return out.reshape(*rows.shape[:-1], *out.shape[1:])


def told_in_features(network: Any) -> int | None:
    """The width of the input, where the network or its first layer tells it."""
    layers = getattr(network, "layers", None)
    first = layers[0] if isinstance(layers, tuple | list) and layers else None
    for holder in (network, first):
        if _takes_scalar(holder):
            return 1
        for name in ("in_features", "in_size"):
            width = getattr(holder, name, None)
            if isinstance(width, int):
                return width
    return None


def check_parameter_net(parameter_net: Any) -> None:
    """Raise unless it can be called."""
    if not callable(parameter_net):
        raise TypeError(
            "parameter_net must be a callable of one context, a vector, got "
            f"{parameter_net!r}."
        )


def _takes_scalar(function: Any) -> bool:
    """Whether it is one of Equinox's that take a scalar for their input."""
    names = ("in_features", "in_size")
    return any(getattr(function, name, None) == "scalar" for name in names)
