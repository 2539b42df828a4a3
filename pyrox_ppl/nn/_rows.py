"""Applies a callable of one vector to every vector of a batch."""

from collections.abc import Callable
from typing import Any

import jax

from pyrox_ppl._bind import AbstractModule


def map_rows(function: Callable, rows: jax.Array) -> Any:
    """Apply a function along the last axis; Equinox's networks take one vector.

    A module of this package takes any batch, so it gets the batch as it is. A single
    vector is passed on without a batch axis. A network with a ``"scalar"`` input gets
    the one entry of each vector.
    """
    name = getattr(function, "__name__", type(function).__name__)
    scalar = _takes_scalar(function)
    if scalar and rows.shape[-1] != 1:
        raise ValueError(
            f"{name} takes a scalar, so each row must have 1 entry, but the input has "
            f"shape {rows.shape}."
        )

    def one(row: jax.Array) -> Any:
        return function(row[0] if scalar else row)

    try:
        if rows.ndim == 1 or isinstance(function, AbstractModule):
            return one(rows)
        out = jax.vmap(one)(rows.reshape(-1, rows.shape[-1]))
    except TypeError as error:  # JAX raises it for shapes that do not fit
        raise ValueError(
            f"{name} does not take a vector of shape {rows.shape[-1:]}, one row of an "
            f"input of shape {rows.shape}: {error}"
        ) from error
    return out.reshape(*rows.shape[:-1], *out.shape[1:])


def find_in_features(network: Any) -> int | None:
    """Find the input width on the network or on its first layer; None if unknown."""
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
    """Raise unless the parameter net is callable."""
    if not callable(parameter_net):
        raise TypeError(
            "parameter_net must be a callable of one context (a vector), got "
            f"{parameter_net!r}."
        )


def _takes_scalar(function: Any) -> bool:
    """Whether a function is an Equinox module with a ``"scalar"`` input."""
    names = ("in_features", "in_size")
    return any(getattr(function, name, None) == "scalar" for name in names)
