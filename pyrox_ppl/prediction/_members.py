"""The axis of a plate's members, which a module bound on a plate has on every array."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pyrox_ppl._dict_order import rebuild


def plate_size(module: Any, trained: Any, by_position: Mapping[int, Any]) -> int | None:
    """The size of the plate on which a module was bound, if it was.

    Args:
        module: The module with its stored values.
        trained: The module with its trained values.
        by_position: The draws of its leaves.
    """
    pairs = zip(jax.tree.leaves(module), jax.tree.leaves(trained), strict=True)
    for position, (old, leaf) in enumerate(pairs):
        value = by_position.get(position)
        if value is not None and value.ndim > 1 + old.ndim:
            return value.shape[1]
        if value is None and hasattr(leaf, "ndim") and leaf.ndim > old.ndim:
            return leaf.shape[0]
    return None


def give_members(
    module: Any, trained: Any, by_position: Mapping[int, Any], members: int
) -> tuple[Any, dict[int, Any]]:
    """Give every array the axis of a plate's members, as ``bind(plate=...)`` does."""
    stored, leaves = jax.tree.leaves(module), jax.tree.leaves(trained)
    for position, (old, leaf) in enumerate(zip(stored, leaves, strict=True)):
        if is_array(leaf):
            one = with_leading(jnp.asarray(leaf)[None], (1, members), old)
            leaves[position] = one[0]
    values = {
        position: with_leading(value, (value.shape[0], members), stored[position])
        for position, value in by_position.items()
    }
    return rebuild(trained, leaves), values


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of JAX or NumPy."""
    return isinstance(leaf, jax.Array | np.ndarray)


def with_leading(value: Any, leading: tuple[int, ...], old: Any) -> jax.Array:
    """Give an array of draws the leading axes that it lacks, after that of the draws.

    Args:
        value: The draws of an array, with or without the axis of a plate.
        leading: The sizes of the leading axes.
        old: The array that the module holds.
    """
    missing = len(leading) + old.ndim - value.ndim
    value = jnp.expand_dims(value, tuple(range(1, 1 + missing)))
    return jnp.broadcast_to(value, (*leading, *old.shape))
