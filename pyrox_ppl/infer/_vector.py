"""All sites of a model as one vector: the map to sites, and a search for a start."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import ParamInfo

from pyrox_ppl.infer._computed_once import computed_once


class Unravel:
    """The map from a vector to values by site, in the order of the names of the sites.

    It pickles, unlike the function that JAX's ``ravel_pytree`` returns. With `fused`,
    XLA may compute it together with the model.
    """

    def __init__(self, sites: dict[str, Any], *, fused: bool) -> None:
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
        if self._fused:
            return sites
        # Else XLA fuses each slice into the model, and each gradient into the joining
        # of all of them, which takes it long to compile.
        return computed_once(sites)


def ravel(sites: dict[str, Any]) -> jax.Array:
    """Join values by site into one vector, in the order of the names of the sites."""
    return jnp.asarray(ravel_pytree(sites)[0])


def uniform_radius(strategy: Callable) -> float | None:
    """The radius of an ``init_to_uniform``; None if the strategy is another one."""
    made = strategy if isinstance(strategy, partial) else strategy()
    return float(made.keywords["radius"]) if made.func is init_to_uniform else None


def search_uniformly(
    rng_key: Any, potential: Callable, like: Any, radius: float, *, forward: bool
) -> ParamInfo:
    """Draw up to 100 vectors until energy and gradient are finite; return the last one.

    NumPyro's ``find_valid_initial_params`` does the same with a draw for each site,
    which makes one operation per site in the compiled program.
    """

    def attempt(state: tuple) -> tuple:
        i, key, _, _ = state
        key, subkey = jax.random.split(key)
        z = jax.random.uniform(subkey, like.shape, like.dtype, -radius, radius)
        energy, grad = _value_and_grad(potential, z, forward)
        valid = jnp.isfinite(energy) & jnp.all(jnp.isfinite(grad))
        return i + 1, key, ParamInfo(z, energy, grad), valid

    def is_unfinished(state: tuple) -> jax.Array:
        return (state[0] < 100) & ~state[3]

    zeros = jnp.zeros(like.shape, like.dtype)
    energy = jax.eval_shape(potential, zeros)
    before = ParamInfo(zeros, jnp.zeros(energy.shape, energy.dtype), zeros)
    start = (jnp.asarray(0), rng_key, before, jnp.asarray(False))
    return lax.while_loop(is_unfinished, attempt, start)[2]


def _value_and_grad(potential: Callable, z: jax.Array, forward: bool) -> tuple:
    if forward:
        return potential(z), jax.jacfwd(potential)(z)
    return jax.value_and_grad(potential)(z)
