"""Random bits of an array with several axes, made along a single one.

The bits are the same, and XLA makes them four times faster: its loop over a short last
axis, such as that of ten classes, does not become vector instructions.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Literal

from pyrox_ppl._jaxpr import bind_eqn

_CALLS = ("jit", "pjit")


def with_flat_bits(
    function: Callable[..., Any], *example: Any
) -> tuple[Callable[..., Any], Any]:
    """The same function, its random bits made along one axis.

    JAX numbers the bits of an array in the order of its entries, so every value stays
    what it was.

    Args:
        function: The function. It runs once, abstractly.
        *example: Arguments of the shapes that the function will be given.

    Returns:
        The function for arguments of these shapes, and the shapes of its result.
    """
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*example)
    treedef = jax.tree.structure(shapes)

    def flat(*args: Any) -> Any:
        return jax.tree.unflatten(treedef, _evaluate(jaxpr, jax.tree.leaves(args)))

    return flat, shapes


def _evaluate(closed: Any, args: list[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    names, given = (*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args)
    values = dict(zip(names, given, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name == "random_bits":
            results = [_flat_bits(eqn, *operands)]
        elif _has_random_bits(eqn):
            results = _evaluate(eqn.params["jaxpr"], operands)
        else:
            results = bind_eqn(eqn, operands)
        values |= zip(eqn.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _has_random_bits(eqn: Any) -> bool:
    """Whether an operation makes random bits, itself or in a compiled function."""
    if eqn.primitive.name in _CALLS:
        return any(map(_has_random_bits, eqn.params["jaxpr"].jaxpr.eqns))
    return eqn.primitive.name == "random_bits"


def _flat_bits(eqn: Any, keys: jax.Array) -> jax.Array:
    """The bits for one key, or for an array of keys along the first axes."""
    shape = eqn.params["shape"]
    params = {**eqn.params, "shape": (math.prod(shape),)}
    with eqn.ctx.manager:
        return eqn.primitive.bind(keys, **params).reshape(*keys.shape, *shape)
