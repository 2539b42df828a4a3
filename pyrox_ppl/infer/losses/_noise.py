"""Noise for rows of data, which is most of what a low-variance step costs."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def standard_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Independent standard normals.

    JAX's generator takes longer than the matrix product that the noise is added to. In
    float32 each number is a hash of its index instead, in a stream that the key picks.
    """
    if dtype != jnp.float32:
        return jax.random.normal(key, shape, dtype)
    offset, mask = jax.random.bits(key, (2,), jnp.uint32)
    index = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    bits = _hash(_hash(index + offset) ^ mask)
    # The upper 23 bits are the digits of a number between 1 and 2.
    digits = lax.shift_right_logical(bits, jnp.uint32(9)) | jnp.uint32(0x3F800000)
    unit = lax.bitcast_convert_type(digits, jnp.float32) - 1.0
    # The middle of each of 2^23 intervals: never 0 or 1, and symmetric.
    uniform = 2.0 * unit - (1.0 - 2.0**-23)
    # The barrier keeps XLA from making the noise again in the gradient.
    return lax.optimization_barrier(math.sqrt(2.0) * lax.erf_inv(uniform))


def _hash(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which each bit depends on every other.

    The constants are those of `lowbias32`, found by C. Wellons by search.
    """
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return x ^ (x >> jnp.uint32(16))


def random_signs(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Independent signs: 32 from each word of random bits."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
    # The barrier keeps XLA from making each word again for each of its bits.
    words = lax.optimization_barrier(words)
    bits = words >> jnp.arange(32, dtype=jnp.uint32)[None]
    # One, with the bit as its sign.
    ones = (bits << jnp.uint32(31)) | jnp.uint32(0x3F800000)
    signs = lax.bitcast_convert_type(ones, jnp.float32)
    return signs.reshape(-1)[:size].reshape(shape).astype(dtype)
