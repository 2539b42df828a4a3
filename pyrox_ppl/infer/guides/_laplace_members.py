"""The parameters that a Laplace approximation adds to each member of an ensemble."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Values = dict[str, jax.Array]


def over_members(
    add: Callable[[Mapping[str, Any], object], Values],
    params: Mapping[str, Any],
    members: int | None,
) -> Values:
    """What is added to the parameters of each member, along a first axis.

    Args:
        add: What is added to the parameters of a single fit. The second argument is
            what its compiled programs belong to, the same for all members.
        params: The parameters.
        members: The number of members; None for a single fit.

    Raises:
        ValueError: If nothing can be added to a member; a note says which one it is.
    """
    programs = object()
    if members is None:
        return add(params, programs)
    each = []
    for member in range(members):
        own = _member(dict(params), member)
        try:
            each.append(add(own, programs))
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
