"""Checks of the arguments of a prior, once, where the rule is made."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


def check_positive(name: str, value: ArrayLike) -> None:
    """Raise if a scale is not positive and finite; a traced value is let through."""
    if isinstance(value, Tracer):
        return
    array = np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.number) and np.isrealobj(array)):
        raise TypeError(f"{name} must be a positive number, got {value!r}.")
    if not (np.all(array > 0) and np.all(np.isfinite(array))):
        raise ValueError(f"{name} must be positive and finite, got {value!r}.")
