"""Uniform random numbers in double precision from a JAX key, without x64."""

import jax
import numpy as np


def uniform(rng_key: jax.Array, shape: tuple[int, ...], purpose: int = 0) -> np.ndarray:
    """Numbers in [0, 1), independent for different purposes of the same key."""
    words = np.asarray(jax.random.key_data(rng_key))
    if words.ndim != 1:
        raise ValueError(
            f"rng_key is one key, such as jax.random.key(0); got {words.shape[:-1]} of "
            "them."
        )
    return np.random.default_rng([*words.tolist(), purpose]).uniform(size=shape)
