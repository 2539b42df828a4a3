"""What JAX's primitives do to the axes of their operands.

A primitive without an entry here is one that mixes everything, which is always sound.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from pyrox_ppl.infer._jaxpr import (
    ELEMENTWISE,
    LINEAR_ELEMENTWISE,
    STRUCTURAL,
    names,
)
from pyrox_ppl.infer.losses._dependence import AxisMap

Shape = tuple[int, ...]
_Rule = Callable[[dict[str, Any], list[Shape], Shape, int], AxisMap]


def _keep(removed: set[int], ndim: int) -> AxisMap:
    """The axes that stay, in their order, without the removed ones."""
    kept = [axis for axis in range(ndim) if axis not in removed]
    axes = tuple(kept.index(a) if a in kept else None for a in range(ndim))
    return AxisMap(axes)


def _reduce(params: dict, shapes: list[Shape], out: Shape, index: int) -> AxisMap:
    return _keep({int(axis) for axis in params["axes"]}, len(shapes[index]))


def _squeeze(params: dict, shapes: list[Shape], out: Shape, index: int) -> AxisMap:
    return _keep({int(axis) for axis in params["dimensions"]}, len(shapes[index]))


def _transpose(params: dict, shapes: list[Shape], out: Shape, index: int) -> AxisMap:
    order = [int(axis) for axis in params["permutation"]]
    return AxisMap(tuple(order.index(axis) for axis in range(len(order))))


def _broadcast(params: dict, shapes: list[Shape], out: Shape, index: int) -> AxisMap:
    return AxisMap(tuple(int(axis) for axis in params["broadcast_dimensions"]))


def _in_place(combined: Callable, moved: Callable) -> _Rule:
    """Every axis stays where it is; some are combined, some moved."""

    def rule(params: dict, shapes: list[Shape], out: Shape, index: int) -> AxisMap:
        shape = shapes[index]
        lost = combined(params, shape)
        axes = tuple(None if a in lost else a for a in range(len(shape)))
        return AxisMap(axes, frozenset(moved(params, shape, out)))

    return rule


def _nothing(*_: Any) -> set[int]:
    return set()


def _changed(params: dict, shape: Shape, out: Shape) -> set[int]:
    # An operand that holds a place has no axes.
    pairs = enumerate(zip(shape, out, strict=False))
    return {axis for axis, (a, b) in pairs if a != b}


def _concatenated(params: dict, shape: Shape, out: Shape) -> set[int]:
    return {params["dimension"]}


def _split(params: dict, shape: Shape, out: Shape) -> set[int]:
    return {params["axis"]}


def _reversed(params: dict, shape: Shape, out: Shape) -> set[int]:
    return {int(axis) for axis in params["dimensions"]}


def _padded(params: dict, shape: Shape, out: Shape) -> set[int]:
    return {a for a, pad in enumerate(params["padding_config"]) if any(pad)}


def _scanned(params: dict, shape: Shape) -> set[int]:
    return {params["axis"]}


def _sorted(params: dict, shape: Shape) -> set[int]:
    return {params["dimension"]}


def _last(number: int) -> Callable:
    return lambda params, shape: set(range(len(shape) - number, len(shape)))


def _windows(params: dict, shape: Shape) -> set[int]:
    sizes, strides = params["window_dimensions"], params["window_strides"]
    pads = zip(sizes, strides, params["padding"], strict=True)
    return {a for a, (n, s, pad) in enumerate(pads) if n != 1 or s != 1 or any(pad)}


def _dot(params: dict, shapes: list[Shape], out: Shape, index: int) -> AxisMap:
    contracting, batch = params["dimension_numbers"]
    batch_here = [int(axis) for axis in batch[index]]
    frees = []
    for side in (0, 1):
        taken = {int(axis) for axis in (*contracting[side], *batch[side])}
        frees.append([a for a in range(len(shapes[side])) if a not in taken])
    offset = len(batch_here) + (len(frees[0]) if index == 1 else 0)
    free = frees[index]
    return AxisMap(
        tuple(
            batch_here.index(a)
            if a in batch_here
            else offset + free.index(a)
            if a in free
            else None
            for a in range(len(shapes[index]))
        )
    )


def _conv(params: dict, shapes: list[Shape], out: Shape, index: int) -> AxisMap:
    numbers = params["dimension_numbers"]
    spec = numbers.lhs_spec if index == 0 else numbers.rhs_spec
    axes: list[int | None] = [None] * len(spec)
    if params["batch_group_count"] == 1:
        # The first entry of a specification is the batch, or the outgoing features.
        axes[spec[0]] = numbers.out_spec[0 if index == 0 else 1]
    return AxisMap(tuple(axes))


def _solve(params: dict, shapes: list[Shape], out: Shape, index: int) -> AxisMap:
    """The columns of the right-hand side are solved one by one."""
    ndim = len(shapes[index])
    lost = {ndim - 2, ndim - 1}
    if index == 1:
        lost.remove(ndim - 1 if params["left_side"] else ndim - 2)
    return AxisMap(tuple(None if axis in lost else axis for axis in range(ndim)))


_RULES: dict[str, _Rule] = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "concatenate": _in_place(_nothing, _concatenated),
    "split": _in_place(_nothing, _split),
    "slice": _in_place(_nothing, _changed),
    "dynamic_slice": _in_place(_nothing, _changed),
    "dynamic_update_slice": _in_place(_nothing, _changed),
    "rev": _in_place(_nothing, _reversed),
    "pad": _in_place(_nothing, _padded),
    "sort": _in_place(_sorted, _nothing),
    "top_k": _in_place(_last(1), _nothing),
    "cholesky": _in_place(_last(2), _nothing),
    "triangular_solve": _solve,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
}
for _name in ("sum", "max", "min", "prod", "and", "or", "xor"):
    _RULES[f"reduce_{_name}"] = _reduce
for _name in ("argmax", "argmin"):
    _RULES[_name] = _reduce
for _name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
    _RULES[_name] = _in_place(_scanned, _nothing)
for _name in ("reduce_window", "reduce_window_max", "reduce_window_sum"):
    _RULES[_name] = _in_place(_windows, _nothing)

# They are linear in the operands that hold numbers; the others hold places.
_LINEAR = STRUCTURAL | names(
    "concatenate split dynamic_update_slice pad reduce_sum cumsum reduce_window_sum "
    "scatter scatter-add select_n"
)


def is_linear(name: str, params: dict[str, Any]) -> bool:
    """Whether a primitive is linear in its operands, but for places and predicates."""
    if name == "convert_element_type":
        return bool(jnp.issubdtype(params["new_dtype"], jnp.inexact))
    return name in _LINEAR or name in LINEAR_ELEMENTWISE


def places(name: str, num_operands: int) -> set[int]:
    """The positions of the operands that say where or whether, and hold no numbers."""
    match name:
        case "select_n":
            return {0}
        case "dynamic_slice":
            return set(range(1, num_operands))
        case "dynamic_update_slice":
            return set(range(2, num_operands))
        case "gather":
            return {1}
        case _:
            return {1} if name.startswith("scatter") else set()


def axis_map(
    name: str, params: dict[str, Any], shapes: list[Shape], out: Shape, index: int
) -> AxisMap | None:
    """Where the axes of one operand go; None if the primitive is not known."""
    if name in ELEMENTWISE:
        return AxisMap(tuple(range(len(shapes[index]))))
    if name.startswith("scatter"):
        ndim = len(shapes[index])
        return AxisMap(tuple(range(ndim)) if index == 0 else (None,) * ndim)
    rule = _RULES.get(name)
    return None if rule is None else rule(params, shapes, out, index)


def gather_map(params: dict[str, Any], shapes: list[Shape], out: Shape) -> AxisMap:
    """Where a gather puts the axes of its operand; None where the axis is indexed."""
    numbers, indexed = params["dimension_numbers"], params["slice_sizes"]
    offsets = list(numbers.offset_dims)
    batch = [axis for axis in range(len(out)) if axis not in offsets]
    left_out = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    axes: list[int | None] = []
    for axis, size in enumerate(shapes[0]):
        if axis in numbers.operand_batching_dims:
            place = numbers.operand_batching_dims.index(axis)
            axes.append(batch[numbers.start_indices_batching_dims[place]])
        elif axis in left_out or indexed[axis] != size:
            axes.append(None)
        else:
            kept = [a for a in range(len(shapes[0])) if a not in left_out]
            axes.append(offsets[kept.index(axis)])
    return AxisMap(tuple(axes))
