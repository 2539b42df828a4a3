"""Whether values at a point depend on how many points are taken at a time.

A function may read the number of its points (``len(x)``), or count them. Its program
shows where it may: with other numbers for more points, or where an axis of points
appears or vanishes. What it shows may be harmless: `predict` then tries it.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from pyrox_ppl._jaxpr import bodies, open_jaxpr


def may_depend_on_count(function: Callable[[Any], Any], some: Any, more: Any) -> bool:
    """Whether the programs at some points and at more differ, but for their shapes."""
    trace = eqx.filter_make_jaxpr(function)
    return _programs_differ(open_jaxpr(trace(some)[0]), open_jaxpr(trace(more)[0]))


def _programs_differ(one: tuple[Any, list[Any]], other: tuple[Any, list[Any]]) -> bool:
    (jaxpr, constants), (twin, others) = one, other
    if len(jaxpr.eqns) != len(twin.eqns) or len(constants) != len(others):
        return True
    same = all(map(_is_same, constants, others))
    return not same or any(map(_steps_differ, jaxpr.eqns, twin.eqns))


def _steps_differ(eqn: Any, twin: Any) -> bool:
    if eqn.primitive is not twin.primitive or _numbers(eqn) != _numbers(twin):
        return True
    moved = _moving_axes(eqn.invars, twin.invars)
    return moved != _moving_axes(eqn.outvars, twin.outvars) or any(
        map(_programs_differ, bodies(eqn), bodies(twin))
    )


def _numbers(eqn: Any) -> list[Any]:
    """The numbers that an operation holds, not those of its shapes."""
    literals = [np.asarray(v.val).item() for v in eqn.invars if isinstance(v, Literal)]
    params = [v for v in eqn.params.values() if isinstance(v, int | float)]
    return [*map(repr, literals), *map(repr, params)]


def _moving_axes(atoms: list[Any], twins: list[Any]) -> int:
    """The most axes of one array whose lengths are those of the points."""
    shapes = ((a.aval.shape, b.aval.shape) for a, b in zip(atoms, twins, strict=True))
    moving = (sum(map(int.__ne__, *pair)) for pair in shapes)
    return max(moving, default=0)


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    kinds = isinstance(one, np.ndarray), isinstance(other, np.ndarray)
    return all(kinds) and np.array_equal(one, other)


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether values differ by more than rounding errors of the largest value."""
    kind = np.complex128 if np.iscomplexobj(one) else np.float64
    one, other = one.astype(kind), other.astype(kind)
    size = np.abs(one[np.isfinite(one)]).max(initial=0.0)
    eps = float(jnp.finfo(jnp.float32).eps)
    return not np.allclose(one, other, rtol=0.0, atol=1e3 * eps * size, equal_nan=True)
