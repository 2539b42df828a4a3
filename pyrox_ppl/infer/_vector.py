"""All sites of a model as one vector, in the order of their names."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree


class Vector:
    """The map from a vector to values by site. It pickles, as JAX's own does not.

    Without the barrier XLA fuses the pieces of the vector into the model, and the
    joining of their gradients into its gradient, which takes it long to compile.
    """

    def __init__(self, sites: Any, *, fused: bool) -> None:
        self._shapes = {
            name: (jnp.shape(sites[name]), jnp.result_type(sites[name]))
            for name in sorted(sites)
        }
        self._fused = fused

    def __call__(self, vector: jax.Array) -> dict[str, jax.Array]:
        """The values by site."""
        sites, start = {}, 0
        for name, (shape, dtype) in self._shapes.items():
            stop = start + math.prod(shape)
            sites[name] = vector[start:stop].reshape(shape).astype(dtype)
            start = stop
        return sites if self._fused else lax.optimization_barrier(sites)


def ravel(sites: Any) -> jax.Array:
    """Values by site as a vector."""
    return jnp.asarray(ravel_pytree(sites)[0])
