"""Applies layers generated from contexts without building the weights of every row.

A generated layer is trilinear, ``y[c] = sum_ik G[c, i, k] z[k] x[i]``. The sum can be
taken in three orders: the weights ``G z`` first, the features ``G x`` first, or the
outer product of z and x first. The shapes alone decide which is cheapest. In every
order the intermediate array is made in pieces that stay in the cache, and made again in
the gradient, so a gradient keeps only the inputs of a call. Everything is built from
JAX's own operations, so forward and reverse derivatives of any order work.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from pyrox_ppl.nn._linear import align, linear

Order = Literal["weights", "features", "outer"]

# Entries of the intermediate array that are held at a time: 4 MiB of float32, which a
# CPU's last cache holds. Larger pieces go through main memory.
_PIECE = 2**20
# Columns of the outer product that are multiplied at a time. One to two thousand ran
# fastest on CPU: the matrix product is large enough to be efficient, and its operand
# stays small.
_COLUMNS = 1536
# The cost of an entry of the intermediate array, in multiplications: the entry and its
# gradient are both written and read. Fitted to measured times on CPU.
_TRAFFIC = 32


def generated_linear(
    weight: jax.Array, bias: jax.Array | None, z: jax.Array, x: jax.Array
) -> jax.Array:
    """Compute ``W(z) x + b(z)``, where ``weight @ z + bias`` generates the layer.

    Args:
        weight: The generator's weight, of shape (C * C_in + C, K): the rows of the
            generated weight, then the generated bias.
        bias: The generator's bias, of shape (C * C_in + C,).
        z: Contexts of shape (K,) or (*batch, K).
        x: Features of shape (*batch, C_in). Their batch axes broadcast against those of
            `z`, which has as many of them or none.

    Returns:
        An array of shape (*batch, C). Along an axis of size 1 in `z` each layer is
        generated once and applied to all the features that share it.
    """
    width = x.shape[-1]
    # The generator has C * C_in + C = C * (C_in + 1) rows; the weight has C * C_in.
    split = weight.shape[0] // (width + 1) * width
    ndim = max(x.ndim, z.ndim)
    if z.size == z.shape[-1]:  # a single context: an ordinary linear layer
        generated = linear(weight, bias, z.reshape(-1))
        matrix = rearrange(generated[:split], "(c i) -> c i", i=width)
        return align(linear(matrix, generated[split:], x), ndim)
    x, z = align(x, ndim), align(z, ndim)
    tensor = rearrange(weight[:split], "(c i) k -> c i k", i=width)
    shift = linear(weight[split:], None if bias is None else bias[split:], z)
    base = None if bias is None else rearrange(bias[:split], "(c i) -> c i", i=width)
    return _contract(tensor, base, z, x) + shift


class _Layout(NamedTuple):
    """Groups the batch axes into three kinds: in both, in z alone, in x alone.

    In the example of 7 contexts with 5 points each, z is (7, 1, K) and x is (7, 5, C):
    the axis of 7 is in both, the axis of 5 is in x alone.
    """

    axes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    shape: tuple[int, ...]

    @classmethod
    def from_arrays(cls, z: jax.Array, x: jax.Array) -> "_Layout":
        both, z_alone, x_alone = [], [], []
        pairs = list(zip(z.shape[:-1], x.shape[:-1], strict=True))
        for axis, (in_z, in_x) in enumerate(pairs):
            kind = both if in_z == in_x else x_alone if in_z == 1 else z_alone
            kind.append(axis)
        shape = tuple(b if a == 1 else a for a, b in pairs)
        return cls((tuple(both), tuple(z_alone), tuple(x_alone)), shape)

    @property
    def order(self) -> list[int]:
        """The batch axes, kind by kind."""
        return [axis for axes in self.axes for axis in axes]

    def size(self, kind: int) -> int:
        """Multiply the sizes of all axes of a kind."""
        return math.prod(self.shape[axis] for axis in self.axes[kind])

    def gather(self, array: jax.Array, kind: int) -> jax.Array:
        """Merge the batch axes of an array into two: the common ones and its own."""
        moved = array.transpose(*self.order, array.ndim - 1)
        return moved.reshape(self.size(0), self.size(kind), array.shape[-1])

    def scatter(self, y: jax.Array) -> jax.Array:
        """Split and reorder the axes of a result (both, z alone, x alone, C)."""
        y = y.reshape(*(self.shape[axis] for axis in self.order), y.shape[-1])
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return y.transpose(*back, y.ndim - 1)


def _contract(
    tensor: jax.Array, base: jax.Array | None, z: jax.Array, x: jax.Array
) -> jax.Array:
    """Compute ``y[c] = sum_i (sum_k tensor[c, i, k] z[k] + base[c, i]) x[i]``."""
    layout = _Layout.from_arrays(z, x)
    rows = x
    z, x = layout.gather(z, 1), layout.gather(x, 2)
    match cheapest_order(tensor.shape, z.shape[1], x.shape[1]):
        case "weights":
            return layout.scatter(_weights_first(tensor, base, z, x))
        case "outer":
            y = _outer_first(tensor, z, x)
        case "features":
            # The sum is symmetric: with z and x exchanged the features are "weights".
            y = _weights_first(tensor.transpose(0, 2, 1), None, x, z).swapaxes(1, 2)
    y = layout.scatter(y)
    # `base` is one weight for all contexts, so it needs one ordinary matrix product.
    return y if base is None else y + linear(base, None, rows)


def cheapest_order(shape: tuple[int, ...], n_contexts: int, n_features: int) -> Order:
    """Find the order of the lowest cost: multiplications plus memory traffic.

    Args:
        shape: (C, C_in, K).
        n_contexts: How many contexts meet the same features.
        n_features: How many features meet the same context.

    Returns:
        What to contract first.
    """
    c, i, k = shape
    pairs = n_contexts * n_features
    intermediate = {
        "outer": pairs * k * i,
        "features": n_features * c * k,
        "weights": n_contexts * c * i,
    }
    multiplications = {
        "outer": pairs * c * i * k,
        "features": n_features * c * i * k + pairs * c * k,
        "weights": n_contexts * c * i * k + pairs * c * i,
    }
    orders: tuple[Order, ...] = ("outer", "features", "weights")
    return min(orders, key=lambda o: multiplications[o] + _TRAFFIC * intermediate[o])


def _weights_first(
    tensor: jax.Array, base: jax.Array | None, z: jax.Array, x: jax.Array
) -> jax.Array:
    """Make the weights of some contexts at a time, and apply them to their features."""
    c, i, _ = tensor.shape

    def apply(z: jax.Array, x: jax.Array) -> jax.Array:
        weights = jnp.einsum("cik,nqk->nqci", tensor, z)
        if base is not None:
            weights = weights + align(base, 4)
        return jnp.einsum("nqci,npi->nqpc", weights, x)

    entries = z.shape[1] * c * i
    if entries <= _PIECE:
        return _map_pieces(apply, (z, x), entries)

    # The weights of one row's contexts exceed a piece, so split the contexts as well.
    def apply_row(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        z, x = row
        return _map_pieces(lambda z: apply(z[None], x[None])[0], (z,), c * i)

    return jax.lax.map(apply_row, (z, x))


def _outer_first(tensor: jax.Array, z: jax.Array, x: jax.Array) -> jax.Array:
    """Sum over blocks of K: the outer product of a block of z with x, times G."""
    c, i, k = tensor.shape
    # The largest divisor of K whose block has at most _COLUMNS columns, or 1.
    block = max(b for b in range(1, k + 1) if k % b == 0 and b * i <= max(_COLUMNS, i))
    entries = z.shape[1] * x.shape[1] * block * i

    def apply(tensor: jax.Array, z: jax.Array) -> jax.Array:
        return _map_pieces(functools.partial(_block, tensor), (z, x), entries)

    blocks = rearrange(tensor, "c i (m b) -> m b i c", b=block)
    if len(blocks) == 1:
        return apply(blocks[0], z)

    def add(y: jax.Array, pair: tuple[jax.Array, jax.Array]) -> Any:
        return y + apply(*pair), None

    start = jnp.zeros((*z.shape[:2], x.shape[1], c), jnp.result_type(tensor, z, x))
    parts = rearrange(z, "n q (m b) -> m n q b", b=block)
    return jax.lax.scan(add, start, (blocks, parts))[0]


# Checkpointed, so that a gradient makes the outer product again and does not keep it.
@jax.checkpoint
def _block(tensor: jax.Array, z: jax.Array, x: jax.Array) -> jax.Array:
    outer = jnp.einsum("nqk,npi->nqpki", z, x)
    return jnp.einsum("nqpki,kic->nqpc", outer, tensor)


def _map_pieces(
    function: Callable[..., jax.Array], rows: tuple[jax.Array, ...], entries: int
) -> jax.Array:
    """Apply a function to as many rows at a time as fit into a piece.

    Each row makes `entries` entries of the intermediate array.
    """
    total, at_once = len(rows[0]), max(1, _PIECE // max(1, entries))
    if total <= at_once:
        return function(*rows)
    count = total // at_once
    whole = count * at_once
    pieces = [row[:whole].reshape(count, at_once, *row.shape[1:]) for row in rows]
    checkpointed = jax.checkpoint(function)
    y = jax.lax.map(lambda piece: checkpointed(*piece), pieces)
    y = y.reshape(whole, *y.shape[2:])
    if whole == total:
        return y
    # `lax.map` needs equal pieces; the rest is smaller than one.
    return jnp.concatenate([y, function(*(row[whole:] for row in rows))])
