"""Uniform random numbers in double precision from a JAX key, without x64."""

import jax
import numpy as np


def uniform(rng_key: jax.Array, shape: tuple[int, ...], purpose: int = 0) -> np.ndarray:
    """Numbers in [0, 1); the same key gives independent ones for each purpose."""
    words = np.asarray(jax.random.key_data(rng_key))
    if words.ndim != 1:
        raise ValueError(
            "rng_key must be a single key, such as jax.random.key(0); got keys of "
            f"shape {words.shape[:-1]}."
        )
    return np.random.default_rng([*words.tolist(), purpose]).uniform(size=shape)
