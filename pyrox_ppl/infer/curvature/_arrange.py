r"""Each use in one form: weights by block, input and output, data by position.

A use computes, at each position p and for each block b, the outputs
:math:`y_{pbo} = \sum_i x_{pbi} W_{bio}`. Positions are rows of data, the places of a
sequence or an image, and the iterations of loops. A weight that is repeated over data
has the input one. A weight has several blocks where a batched product or a grouped
convolution gives each block inputs of its own.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pyrox_ppl.infer.curvature._indices import Index, lookup_axis, own_axes
from pyrox_ppl.infer.curvature._uses import Use


class Arranged(NamedTuple):
    """A use in the common form.

    Attributes:
        entries: The flat index of the site's entry at ``(block, input, output)``.
        positions: The sizes of the axes of positions, before they are joined.
        gradient: From the derivative by the zero to ``(position, block, output)``.
        inputs: From the other operand to ``(position, block, input)``; or, for a
            look-up, to the places ``(position,)``; None for the input one.
        lookup: Whether the inputs are places.
    """

    entries: Index
    positions: tuple[int, ...]
    gradient: Callable[[Any], jax.Array]
    inputs: Callable[[Any], jax.Array] | None
    lookup: bool = False


def arrange(use: Use, site: str, size: int) -> Arranged | None:
    """Arrange a use for one of its sites of a size; None if it has no such form."""
    index = use.lazy.entries[site]
    match use.kind:
        case "broadcast":
            arranged = _broadcast(use, index)
        case "gather":
            arranged = _lookup(use, index)
        case "dot_general":
            arranged = _dot(use, index)
        case _:
            arranged = _conv(use, index)
    if arranged is None:
        return None
    flat = np.sort(arranged.entries.reshape(-1))
    # Each entry must stand in exactly one place.
    if not np.array_equal(flat, np.arange(size)):
        return None
    return arranged


def axes_of(index: Index, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The order of a site's axes that gives the index; None if there is none."""
    site = np.arange(index.size, dtype=index.dtype).reshape(shape)
    for axes in itertools.permutations(range(len(shape))):
        if np.array_equal(site.transpose(axes).reshape(index.shape), index):
            return axes
    return None


def _loops(use: Use) -> int:
    return len(use.loops)


def _reorder(
    axes: list[int], num_loops: int, sizes: tuple[int, ...]
) -> Callable[[Any], jax.Array]:
    """Move the axes, with those of loops first, and join them to three groups."""
    order = (*range(num_loops), *(axis + num_loops for axis in axes))

    def apply(array: Any) -> jax.Array:
        return jnp.transpose(array, order).reshape(-1, *sizes)

    return apply


def _broadcast(use: Use, index: Index) -> Arranged:
    own = own_axes(index)
    rest = [axis for axis in range(index.ndim) if axis not in own]
    first = tuple(slice(None) if a in own else 0 for a in range(index.ndim))
    order = index[first].reshape(1, 1, -1)
    positions = (*use.loops, *(use.shape[axis] for axis in rest))
    gradient = _reorder([*rest, *own], _loops(use), (1, order.size))
    return Arranged(order, positions, gradient, None)


def _lookup(use: Use, index: Index) -> Arranged | None:
    numbers, axis = (
        use.params["dimension_numbers"],
        lookup_axis(use.params, index.shape),
    )
    if axis is None:
        return None
    offsets = list(numbers.offset_dims)
    rest = [a for a in range(len(use.shape)) if a not in offsets]
    entries = np.moveaxis(index, axis, 0).reshape(1, index.shape[axis], -1)
    positions = (*use.loops, *(use.shape[a] for a in rest))
    gradient = _reorder([*rest, *offsets], _loops(use), (1, entries.shape[-1]))
    column = numbers.start_index_map.index(axis)

    def inputs(places: Any) -> jax.Array:
        return jnp.clip(places[..., column].reshape(-1), 0, index.shape[axis] - 1)

    return Arranged(entries, positions, gradient, inputs, lookup=True)


def _dot(use: Use, index: Index) -> Arranged:
    k = use.operand
    contracting, batch = use.params["dimension_numbers"]
    contract = [int(a) for a in contracting[k]]
    batches = [int(a) for a in batch[k]]
    free = [a for a in range(index.ndim) if a not in contract and a not in batches]
    own = own_axes(index)
    blocks = [i for i, axis in enumerate(batches) if axis in own]
    shared = [i for i in range(len(batches)) if i not in blocks]
    # A batch axis that repeats the weights is one of positions.
    picked = tuple(
        0 if axis in batches and batches.index(axis) in shared else slice(None)
        for axis in range(index.ndim)
    )
    left = [a for a in range(index.ndim) if picked[a] != 0]
    order = [*(batches[i] for i in blocks), *contract, *free]
    entries = index[picked].transpose([left.index(a) for a in order])
    shape = index.shape
    sizes = [math.prod(shape[a] for a in group) for group in (contract, free)]
    num_blocks = math.prod(shape[batches[i]] for i in blocks)
    entries = entries.reshape(num_blocks, *sizes)

    out, num_free = use.shape, len(free)
    num_batch = len(batches)
    num_rows = len(out) - num_batch - num_free
    start = num_batch if k == 1 else num_batch + num_free
    rows = list(range(start, start + num_rows))
    outputs = [a for a in range(num_batch, len(out)) if a not in rows]
    gradient = _reorder(
        [*shared, *rows, *blocks, *outputs], _loops(use), (num_blocks, sizes[1])
    )
    here, there = contracting[1 - k], batch[1 - k]
    taken = [int(a) for a in (*here, *there)]
    data = [a for a in range(len(taken) + num_rows) if a not in taken]
    inputs = _reorder(
        [
            *(int(there[i]) for i in shared),
            *data,
            *(int(there[i]) for i in blocks),
            *(int(a) for a in here),
        ],
        _loops(use),
        (num_blocks, sizes[0]),
    )
    positions = (*use.loops, *(out[a] for a in (*shared, *rows)))
    return Arranged(entries, positions, gradient, inputs)


def _conv(use: Use, index: Index) -> Arranged:
    params, num_loops = use.params, _loops(use)
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    out_axis, in_axis, *spatial = numbers.rhs_spec
    entries = index.transpose((out_axis, in_axis, *spatial))
    num_out, num_in, *window = entries.shape
    entries = entries.reshape(groups, num_out // groups, -1).transpose(0, 2, 1)

    batch, feature, *places = numbers.out_spec
    gradient = _reorder(
        [batch, *places, feature], num_loops, (groups, num_out // groups)
    )
    spec = tuple(range(len(numbers.out_spec)))
    lhs = numbers.lhs_spec

    def patches(image: jax.Array) -> jax.Array:
        found = lax.conv_general_dilated_patches(
            jnp.transpose(image, lhs),
            window,
            params["window_strides"],
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=params["rhs_dilation"],
            dimension_numbers=lax.ConvDimensionNumbers(spec, spec, spec),
            precision=lax.Precision.HIGHEST,
        )
        return jnp.moveaxis(found, 1, -1)

    def inputs(images: Any) -> jax.Array:
        flat = images.reshape(-1, *images.shape[num_loops:])
        return lax.map(patches, flat).reshape(-1, groups, num_in * math.prod(window))

    positions = (*use.loops, *(use.shape[a] for a in (batch, *places)))
    return Arranged(entries, positions, gradient, inputs)
