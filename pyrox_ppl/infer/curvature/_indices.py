"""Indices that stand for the entries of a site while operations move these."""

from typing import Any

import numpy as np

Index = np.ndarray


def move_entries(eqn: Any, array: Index) -> Index | None:
    """Move the indices of entries as an operation moves the entries."""
    params, shape = eqn.params, tuple(eqn.outvars[0].aval.shape)
    match eqn.primitive.name:
        case "transpose":
            return array.transpose(params["permutation"])
        case "reshape" | "squeeze":
            return array.reshape(shape)
        case "rev":
            return np.flip(array, params["dimensions"])
        case "broadcast_in_dim":
            sizes = [1] * len(shape)
            for axis, place in enumerate(params["broadcast_dimensions"]):
                sizes[place] = array.shape[axis]
            return np.broadcast_to(array.reshape(sizes), shape)
        case "slice":
            steps = params["strides"] or (1,) * array.ndim
            limits = (params["start_indices"], params["limit_indices"], steps)
            return array[tuple(slice(*part) for part in zip(*limits, strict=True))]
        case "copy" | "copy_p":
            return array
        case _:
            return None


def repeat(index: Index, shape: tuple[int, ...]) -> Index:
    """Repeat the indices to a shape."""
    return np.broadcast_to(index, shape)


def count_distinct(index: Index) -> int:
    """How many entries along the axes that do not repeat the array."""
    return int(np.prod([index.shape[a] for a in own_axes(index)]))


def own_axes(index: Index) -> tuple[int, ...]:
    """The axes along which other entries stand; along the others all is repeated."""
    return tuple(
        axis
        for axis, size in enumerate(index.shape)
        if size > 1 and not np.array_equal(index, np.roll(index, 1, axis))
    )


def lookup_axis(params: dict[str, Any], shape: tuple[int, ...]) -> int | None:
    """The axis that a gather looks up; None if it is no look-up along one axis."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    axes = [a for a, n in enumerate(sizes) if n != shape[a]]
    if len(axes) > 1 or numbers.operand_batching_dims:
        return None
    if not axes:  # one row alone
        axes = [a for a in numbers.start_index_map if shape[a] == 1]
    if not axes or sizes[axes[0]] != 1 or axes[0] not in numbers.start_index_map:
        return None
    return axes[0]
