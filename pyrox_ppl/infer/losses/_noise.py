"""Noise for rows of data, which is most of what a low-variance step costs."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def standard_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Independent standard normals."""
    return jax.random.normal(key, shape, dtype)


def random_signs(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Independent signs: 32 from each word of random bits."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
    places = jnp.arange(32, dtype=jnp.uint32)[None]
    bits = (words >> places) & 1
    return 1 - 2 * bits.reshape(-1)[:size].reshape(shape).astype(dtype)
