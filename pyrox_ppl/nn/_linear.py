"""Linear maps on the last axis, with every broadcast explicit.

The tests raise on implicit rank promotion (``jax_numpy_rank_promotion``), which would
pair axes by counting from the right.
"""

import jax
import jax.numpy as jnp


def align(array: jax.Array, ndim: int) -> jax.Array:
    """Insert leading axes until `array` has `ndim` axes."""
    return jnp.expand_dims(array, tuple(range(ndim - array.ndim)))


# A phase counts by its absolute error, and a large one needs all its digits: JAX's
# default on a GPU, TF32, has three.
PHASE = jax.lax.Precision.HIGHEST


def linear(
    weight: jax.Array,
    bias: jax.Array | None,
    x: jax.Array,
    precision: jax.lax.Precision | None = None,
) -> jax.Array:
    """Compute ``W x + b`` for `x` of shape (*batch, in) and `weight` (out, in)."""
    y = jnp.matmul(x, weight.T, precision=precision)
    return y if bias is None else y + align(bias, y.ndim)
