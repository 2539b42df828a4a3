"""Noise for rows of data, which is most of what a low-variance step costs."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pyrox_ppl.infer._computed_once import computed_once


def standard_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Independent standard normals.

    JAX's generator takes longer than the matrix product that the noise is added to. In
    float32 each number is a hash of its index instead, in a stream that the key picks.
    """
    if dtype != jnp.float32:
        return jax.random.normal(key, shape, dtype)
    # The upper 23 bits are the digits of a number between 1 and 2.
    digits = lax.shift_right_logical(_words(key, shape), jnp.uint32(9))
    unit = lax.bitcast_convert_type(digits | jnp.uint32(0x3F800000), jnp.float32) - 1.0
    # The middle of each of 2^23 intervals: never 0 or 1, and symmetric.
    uniform = 2.0 * unit - (1.0 - 2.0**-23)
    # Else XLA would make the noise again in the gradient.
    return computed_once(math.sqrt(2.0) * lax.erf_inv(uniform))


def random_signs(
    key: jax.Array, shape: tuple[int, ...], dtype: Any, *, first: int = 0
) -> jax.Array:
    """Independent signs: 32 from each word of random bits, from word `first` on."""
    rows, rest = (shape[0], shape[1:]) if shape else (1, ())
    # The bit changes along the first axis: XLA reads and shifts many words at once.
    words = _words(key, (1, -(-rows // 32), *rest), first)
    # Else XLA would make each word again for each of its bits.
    words = computed_once(words)
    places = jnp.arange(32, dtype=jnp.uint32).reshape(32, *[1] * (words.ndim - 1))
    # One, with the bit as its sign.
    ones = ((words >> places) << jnp.uint32(31)) | jnp.uint32(0x3F800000)
    signs = lax.bitcast_convert_type(ones, jnp.float32)
    return signs.reshape(32 * words.shape[1], *rest)[:rows].reshape(shape).astype(dtype)


def count_words(shape: tuple[int, ...]) -> int:
    """The number of words that `random_signs` takes for a shape."""
    return -(-math.prod(shape[:1]) // 32) * math.prod(shape[1:])


def _words(key: jax.Array, shape: tuple[int, ...], first: int = 0) -> jax.Array:
    """Random words: hashes of their places, in the stream that a key picks."""
    data = jax.random.key_data(key)
    places = lax.iota(jnp.uint32, math.prod(shape)) + jnp.uint32(first)
    return _hash(_hash(places.reshape(shape) + data[0]) ^ data[-1])


def _hash(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which each bit depends on every other.

    The constants are those of `lowbias32`, found by C. Wellons by search.
    """
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return x ^ (x >> jnp.uint32(16))
