"""The diagonal of one site's curvature: sums of squared gradients, one per datum."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pyrox_ppl.infer.curvature._arrange import Arranged
from pyrox_ppl.infer.curvature._curvature import raise_not_positive
from pyrox_ppl.infer.curvature._rows import Align

# The most numbers that the gradients of some data may hold at a time.
_LARGEST = 2**22


class SiteUse(NamedTuple):
    """One use of the site, with what it met and what it sent back.

    Attributes:
        form: Its common form.
        align: Where the rows are.
        data: What the weights met.
        gradient: The derivatives by the zero.
        slope: The derivative of the weights by the site's entries; None for one.
    """

    form: Arranged
    align: Align
    data: Any
    gradient: Any
    slope: Any


def sum_squares(
    uses: Sequence[SiteUse], rows: int, shape: tuple[int, ...]
) -> jax.Array:
    """The sum over rows of the squared gradient of one site."""
    if len(uses) == 1:
        (use,) = uses
        if len(_positions(use)) == rows:
            return _sum_of_single_positions(use).reshape(shape)
    size = int(np.prod(shape))
    chunk = max(1, min(rows, _LARGEST // max(size, 1)))
    split = [_split(use, rows, chunk) for use in uses]

    def add(total: jax.Array, pieces: list) -> tuple[jax.Array, None]:
        gradient = sum(
            _to_site(use, _outer(use, *piece))
            for use, piece in zip(uses, pieces, strict=True)
        )
        return total + jnp.sum(jnp.square(gradient), 0), None

    dtype = uses[0].gradient.dtype
    total = lax.scan(add, jnp.zeros(size, dtype), split)[0]
    return total.reshape(shape)


def _positions(use: SiteUse) -> range:
    return range(int(np.prod(use.form.positions)))


def _sum_of_single_positions(use: SiteUse) -> jax.Array:
    """Each datum has one position: squares of a product are products of squares."""
    form = use.form
    squares = jnp.square(form.gradient(use.gradient))
    if form.inputs is None:
        total = jnp.sum(squares, 0)[:, None, :]
    elif form.lookup:
        total = jnp.zeros(form.entries.shape, squares.dtype)
        total = total.at[0, form.inputs(use.data)].add(squares[:, 0])
    else:
        x = form.inputs(use.data).astype(squares.dtype)
        total = jnp.einsum("pbi,pbo->bio", jnp.square(x), squares)
    total = _take(total.reshape(1, -1), form)[0]
    return total if use.slope is None else total * jnp.square(use.slope.reshape(-1))


def _split(use: SiteUse, rows: int, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Data and gradients as ``(piece, row, position, ...)``, filled up with zeros."""
    form = use.form
    gradient = form.gradient(use.gradient)
    if form.inputs is None:
        data = jnp.ones((len(gradient), gradient.shape[1], 1), gradient.dtype)
    else:
        data = form.inputs(use.data)
        data = data if form.lookup else data.astype(gradient.dtype)

    def pieces(array: jax.Array) -> jax.Array:
        array = use.align.split(array, form.positions, rows)
        missing = -rows % chunk
        array = jnp.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1)))
        return array.reshape(-1, chunk, *array.shape[1:])

    return pieces(data), pieces(gradient)


def _outer(use: SiteUse, data: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of each datum as ``(row, block, input, output)``."""
    if not use.form.lookup:
        return jnp.einsum("ntbi,ntbo->nbio", data, gradient)
    shape = (len(data), *use.form.entries.shape)
    place = jnp.arange(len(data))[:, None]
    return jnp.zeros(shape, gradient.dtype).at[place, 0, data].add(gradient[:, :, 0])


def _to_site(use: SiteUse, gradient: jax.Array) -> jax.Array:
    flat = _take(gradient.reshape(len(gradient), -1), use.form)
    return flat if use.slope is None else flat * use.slope.reshape(-1)


def _take(flat: jax.Array, form: Arranged) -> jax.Array:
    """Put the entries into the site's own order."""
    order = np.argsort(form.entries.reshape(-1))
    if np.array_equal(order, np.arange(order.size)):
        return flat
    return flat[:, order]


class DiagonalPosterior(eqx.Module):
    """One site's normal posterior with independent entries."""

    precision: jax.Array
    name: str = eqx.field(static=True)

    @classmethod
    def of(
        cls,
        name: str,
        arrays: dict[str, jax.Array],
        prior: jax.Array,
        shape: tuple[int, ...],
    ) -> Self:
        """The posterior of a site's diagonal and a prior's precision."""
        return cls(arrays[f"{name}.diagonal"] + prior, name)

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draw deviations from the mode."""
        precision = self.precision
        noise = jax.random.normal(key, (*shape, *precision.shape), precision.dtype)
        return noise / jnp.sqrt(precision)

    def solve(self, value: jax.Array) -> jax.Array:
        """Multiply the covariance with a vector."""
        return value / self.precision

    def log_det(self) -> jax.Array:
        """The log-determinant of the precision."""
        return jnp.sum(jnp.log(self.precision))

    def diagonal(self) -> jax.Array:
        """The marginal variances."""
        return 1 / self.precision

    def check(self) -> None:
        """Raise a ValueError if an entry's precision is not positive."""
        precision = np.asarray(self.precision)
        if not (np.isfinite(precision).all() and (precision > 0).all()):
            raise_not_positive(self.name, f"has the entry {precision.min():.2g}")
