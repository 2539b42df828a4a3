"""Argument checks of the priors, which run when a rule is made."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


def check_positive(name: str, value: ArrayLike) -> None:
    """Raise unless a scale is positive and finite; traced values are not checked."""
    if isinstance(value, Tracer):
        return
    array = np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.number) and np.isrealobj(array)):
        raise TypeError(f"{name} must be a positive number, got {value!r}.")
    if not (np.all(array > 0) and np.all(np.isfinite(array))):
        raise ValueError(f"{name} must be positive and finite, got {value!r}.")
