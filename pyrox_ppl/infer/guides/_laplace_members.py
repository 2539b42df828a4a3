"""The parameters that a Laplace approximation adds to each member of an ensemble."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pyrox_ppl.infer.curvature import Compiled

Values = dict[str, jax.Array]


def over_members(
    add: Callable[[Mapping[str, Any], jax.Array, Compiled], Values],
    params: Mapping[str, Any],
    rng_key: jax.Array | None,
    members: int | None,
) -> Values:
    """What is added to the parameters of each member, along a first axis.

    Args:
        add: What is added to the parameters of a single fit, with a key of its own and
            the functions that were compiled for a member before.
        params: The parameters.
        rng_key: The key of what is sampled; ``jax.random.key(0)`` for None.
        members: The number of members; None for a single fit.

    Raises:
        ValueError: If nothing can be added to a member; a note says which one it is.
    """
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    compiled = Compiled()
    if members is None:
        return add(params, rng_key, compiled)
    each = []
    for member in range(members):
        own = _member(dict(params), member)
        try:
            key = jax.random.fold_in(rng_key, member)
            each.append(add(own, key, compiled))
        except ValueError as error:
            error.add_note(f"This is the member {member} of the ensemble.")
            raise
    different = sorted(set().union(*each) - set(each[0]).intersection(*each))
    if different:
        raise ValueError(
            "the curvatures of the members have different forms, because a parameter "
            f"is used differently at their modes: only some have {different}. Use the "
            "structure 'diag', 'low_rank' or 'full'."
        )
    return _stack(each)


@jax.jit
def _member(params: dict[str, Any], member: jax.Array | int) -> dict[str, Any]:
    return jax.tree.map(lambda value: value[member], params)


@jax.jit
def _stack(each: list[Values]) -> Values:
    # A prior whose entries agree at one mode only is of shape () there.
    return {
        name: jnp.stack(jnp.broadcast_arrays(*(values[name] for values in each)))
        for name in each[0]
    }
