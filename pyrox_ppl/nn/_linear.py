"""Linear maps on the last axis, with every broadcast explicit."""

import jax
import jax.numpy as jnp


def align(array: jax.Array, ndim: int) -> jax.Array:
    """Insert axes in front, so that `array` has `ndim` axes."""
    return jnp.expand_dims(array, tuple(range(ndim - array.ndim)))


def linear(weight: jax.Array, bias: jax.Array | None, x: jax.Array) -> jax.Array:
    """``W x + b`` for `x` of shape (*batch, in) and a weight of shape (out, in)."""
    y = x @ weight.T
    return y if bias is None else y + align(bias, y.ndim)
