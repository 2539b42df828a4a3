"""Linear maps on the last axis, with every broadcast explicit.

The tests raise on implicit rank promotion (``jax_numpy_rank_promotion``), which would
pair axes by counting from the right.
"""

import jax
import jax.numpy as jnp


def align(array: jax.Array, ndim: int) -> jax.Array:
    """Insert leading axes until `array` has `ndim` axes."""
    return jnp.expand_dims(array, tuple(range(ndim - array.ndim)))


def linear(weight: jax.Array, bias: jax.Array | None, x: jax.Array) -> jax.Array:
    """Compute ``W x + b`` for `x` of shape (*batch, in) and `weight` (out, in)."""
    y = x @ weight.T
    return y if bias is None else y + align(bias, y.ndim)
