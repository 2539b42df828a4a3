"""How the results of an operation on drawn arrays depend on noise."""

from collections.abc import Hashable, Sequence
from typing import Any

from pyrox_ppl.infer._jaxpr import CONTRACTIONS
from pyrox_ppl.infer.losses._book import Book
from pyrox_ppl.infer.losses._dependence import (
    Dependence,
    Mixed,
    Rows,
    State,
    Sum,
    add_states,
    apply_nonlinear,
    drop_short_axes,
    multiply_states,
    reshape_rows,
)
from pyrox_ppl.infer.losses._primitives import (
    axis_map,
    gather_map,
    is_linear,
    places,
)
from pyrox_ppl.infer.losses._uses import Path


def dependence_of_results(
    book: Book, eqn: Any, operands: Sequence[Dependence], path: Path
) -> list[Dependence]:
    """The dependence of each result of an operation."""
    name = eqn.primitive.name
    if name == "optimization_barrier":
        return list(operands)
    outs = [tuple(var.aval.shape) for var in eqn.outvars]
    return [
        _combine(book, eqn, operands, out, (*path, position))
        for position, out in enumerate(outs)
    ]


def _combine(
    book: Book,
    eqn: Any,
    operands: Sequence[Dependence],
    out: tuple[int, ...],
    path: Path,
) -> Dependence:
    name, params = eqn.primitive.name, eqn.params
    fixed = places(name, len(operands))
    bilinear = name in CONTRACTIONS or name in ("mul", "div")
    linear = is_linear(name, params) and not any(operands[k] for k in fixed)
    combined = Sum() if linear or bilinear else Mixed(name)
    moved = [
        {
            noise: _move(eqn, k, state, out, (*path, k), combined)
            for noise, state in dependence.items()
        }
        for k, dependence in enumerate(operands)
    ]
    if linear:
        return add_states(moved)
    if bilinear:
        left, right = moved
        if name == "div":
            right = apply_nonlinear([right], name)
            book.meet(right, right, name)
        book.meet(left, right, name)
        return multiply_states(left, right, name)
    everything = [noise for part in moved for noise in part]
    book.meet(everything, everything, name)
    return apply_nonlinear(moved, name)


def _move(
    eqn: Any,
    index: int,
    state: State,
    out: tuple[int, ...],
    token: Hashable,
    combined: State,
) -> State:
    """The state of the result, as far as one operand goes."""
    name, params = eqn.primitive.name, eqn.params
    if isinstance(state, Mixed):
        return state
    shapes = [tuple(getattr(atom.aval, "shape", ())) for atom in eqn.invars]
    if name == "gather" and index == 0 and isinstance(state, Rows):
        moved = _gather(params, shapes, state, out, token)
    elif name == "reshape" and isinstance(state, Rows):
        moved = reshape_rows(state, shapes[0], out, token)
    else:
        axes = axis_map(name, params, shapes, out, index)
        if name != "gather" and name != "reshape" and axes is None:
            return Mixed(name)
        if isinstance(state, Sum):
            return state
        # The places of a gather are numbers that depend on noise.
        moved = Mixed(name) if axes is None else axes.move(state, token, combined)
    return drop_short_axes(moved, out) if isinstance(moved, Rows) else moved


def _gather(
    params: dict[str, Any],
    shapes: list[tuple[int, ...]],
    rows: Rows,
    out: tuple[int, ...],
    token: Hashable,
) -> State:
    """Rows that are looked up are rows still, in another order."""
    axes = gather_map(params, shapes, out)
    new = [axis if axis < 0 else axes.axes[axis] for axis in rows.axes]
    if None not in new:
        return Rows(tuple(axis for axis in new if axis is not None), rows.view)
    offsets = params["dimension_numbers"].offset_dims
    if all(axis is None or axis < 0 for axis in new):
        loops = tuple(axis for axis in new if axis is not None)
        batch = tuple(axis for axis in range(len(out)) if axis not in offsets)
        return Rows((*loops, *batch), (token, rows.view))
    return Sum()
