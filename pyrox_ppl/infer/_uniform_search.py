"""The uniform search for initial values, with all sites in one vector."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import ParamInfo


def uniform_radius(strategy: Any) -> float | None:
    """The radius of ``init_to_uniform``; None for another strategy."""
    made = strategy if isinstance(strategy, partial) else strategy()
    return float(made.keywords["radius"]) if made.func is init_to_uniform else None


def search(
    rng_key: Any, potential: Callable, like: Any, radius: float, forward: bool
) -> ParamInfo:
    """The first of 100 uniform draws whose energy and gradient are finite, or the last.

    As NumPyro's ``find_valid_initial_params``, with one draw for all sites.
    """

    def attempt(state: tuple) -> tuple:
        i, key, _, _ = state
        key, subkey = jax.random.split(key)
        z = jax.random.uniform(subkey, like.shape, like.dtype, -radius, radius)
        energy, grad = _value_and_grad(potential, z, forward)
        valid = jnp.isfinite(energy) & jnp.all(jnp.isfinite(grad))
        return i + 1, key, ParamInfo(z, energy, grad), valid

    def unfinished(state: tuple) -> jax.Array:
        return (state[0] < 100) & ~state[3]

    nothing = jnp.zeros(like.shape, like.dtype)
    energy = jax.eval_shape(potential, nothing)
    none_yet = ParamInfo(nothing, jnp.zeros(energy.shape, energy.dtype), nothing)
    start = (jnp.asarray(0), rng_key, none_yet, jnp.asarray(False))
    return lax.while_loop(unfinished, attempt, start)[2]


def _value_and_grad(potential: Callable, z: jax.Array, forward: bool) -> tuple:
    if forward:
        return potential(z), jax.jacfwd(potential)(z)
    return jax.value_and_grad(potential)(z)
