"""Callables of one vector, applied to every vector of a batch."""

from collections.abc import Callable
from typing import Any

import jax

from pyrox_ppl._bind import AbstractModule


def each_row(function: Callable, rows: jax.Array) -> jax.Array:
    """Apply along the last axis: Equinox's own networks take one vector at a time.

    A single vector is not made a batch of one, and a module of this package, which
    takes any batch, gets the batch as it is.
    """
    if rows.ndim == 1 or isinstance(function, AbstractModule):
        return function(rows)
    out = jax.vmap(function)(rows.reshape(-1, rows.shape[-1]))
    return out.reshape(*rows.shape[:-1], *out.shape[1:])


def told_in_features(network: Any) -> int | None:
    """The width of the input, where the network or its first layer tells it."""
    layers = getattr(network, "layers", None)
    first = layers[0] if isinstance(layers, tuple | list) and layers else None
    for holder, name in (
        (network, "in_features"),
        (network, "in_size"),
        (first, "in_features"),
    ):
        width = getattr(holder, name, None)
        if isinstance(width, int):
            return width
    return None


def check_parameter_net(parameter_net: Any, cond_dim: int) -> None:
    """Raise unless it can be called with a context, as far as it tells by itself."""
    if not callable(parameter_net):
        raise TypeError(
            "parameter_net must be a callable of one context of shape (cond_dim,), "
            f"got {parameter_net!r}."
        )
    width = told_in_features(parameter_net)
    if width is not None and width != cond_dim:
        raise ValueError(
            f"parameter_net takes {width} inputs, but cond_dim={cond_dim}: it is "
            "called with one context of shape (cond_dim,)."
        )
