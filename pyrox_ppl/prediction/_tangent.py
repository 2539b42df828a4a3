"""Draws of constrained parameters, moved to the tangent at the mode.

A guide that linearises is linear in unconstrained space: a parameter t = T(u) moves
along t* + T'(u*) (u - u*), and so must the parameters of a module's tangent.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pyrox_ppl._support import transform_by_name
from pyrox_ppl.prediction._draws import Draws


def on_tangent(draws: Draws, root: str) -> Draws:
    """The draws, with the constrained parameters under a root on their tangents.

    Args:
        draws: The draws; they stay as they are if their guide does not linearise.
        root: The root of the names of a module's parameters.

    Raises:
        ValueError: If the tree does not say how a parameter is constrained.
    """
    values = dict(draws.values)
    for site, mode in draws.linearized_at.items():
        support = draws.attrs.get(site, {}).get("support")
        is_under = f"{site}.".startswith(f"{root}.")
        if support is None or not is_under or site not in values:
            continue
        transform = transform_by_name(support)
        if transform is None:
            raise ValueError(
                f"the prior of the parameter {site!r} has a support of its own, so the "
                "tree does not say in which space the guide linearised it: predict "
                "with the model instead of the module."
            )
        # One mode for all draws, or one for those of each chain.
        modes = jnp.repeat(jnp.asarray(mode), draws.number // len(mode), axis=0)
        at = transform.inv(modes)
        away = transform.inv(jnp.asarray(values[site])) - at
        start, slope = jax.jvp(transform, (at,), (jnp.ones_like(at),))
        values[site] = np.asarray(start + slope * away)
    return dataclasses.replace(draws, values=values)
