"""The precision of the prior at the mode, in unconstrained space.

It is minus the second derivative of log p(T(u)) + log |det T'(u)|. A full curvature
takes all of it. The others take the diagonal, as they leave out the products of
different sites; a site whose own entries depend on one another is refused.
"""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pyrox_ppl.infer.curvature._at_mode import ModelAtMode, Values
from pyrox_ppl.infer.curvature._layout import Layout


class DensePrior(eqx.Module):
    """The precision of the prior as one matrix, under the name ``precision``."""

    arrays: Values
    layout: Layout = eqx.field(static=True)

    def scale(self, factors: Any) -> Self:
        """Multiply the precision: by a number, or by one for each site.

        Prior terms between two sites are multiplied by the root of both factors.
        """
        root = _roots(factors, self.layout)
        precision = self.arrays["precision"] * root[:, None] * root
        return type(self)({"precision": precision}, self.layout)


class DiagonalPrior(eqx.Module):
    """The precision of the prior for each entry, by site; of shape () if all agree."""

    arrays: Values
    layout: Layout = eqx.field(static=True)

    def scale(self, factors: Any) -> Self:
        """Multiply the precision: by a number, or by one for each site."""
        arrays = {
            name: value * _factor(factors, name) for name, value in self.arrays.items()
        }
        return type(self)(arrays, self.layout)

    def full(self) -> Values:
        """The precision of each entry, repeated where all agree."""
        shapes = zip(self.layout.names, self.layout.shapes, strict=True)
        return {n: jnp.broadcast_to(self.arrays[n], shape) for n, shape in shapes}


Prior = DensePrior | DiagonalPrior


def _factor(factors: Any, name: str) -> Any:
    return factors.get(name, 1.0) if isinstance(factors, dict) else factors


def _roots(factors: Any, layout: Layout) -> jax.Array:
    values = {
        name: jnp.broadcast_to(jnp.sqrt(jnp.asarray(_factor(factors, name))), shape)
        for name, shape, _ in layout.parts()
    }
    return layout.ravel(values)


def dense_prior(
    at_mode: ModelAtMode, layout: Layout, args: tuple, kwargs: dict[str, Any]
) -> DensePrior:
    """The whole matrix of second derivatives."""
    matrix = at_mode.run(_hessian, layout, args, kwargs)
    _check_finite(np.asarray(matrix), layout)
    return DensePrior({"precision": matrix}, layout)


def _hessian(
    at_mode: ModelAtMode, layout: Layout, args: tuple, kwargs: dict[str, Any]
) -> jax.Array:
    def gradient(vector: jax.Array) -> jax.Array:
        def energy(v: jax.Array) -> jax.Array:
            return -at_mode.log_prior(layout.unravel(v), args, kwargs)

        return jax.grad(energy)(vector)

    start = layout.ravel(at_mode.start)
    _, pullback = jax.vjp(gradient, start)
    basis = jnp.eye(layout.size, dtype=start.dtype)
    matrix = lax.map(lambda w: pullback(w)[0], basis, batch_size=32)
    return (matrix + matrix.T) / 2


def diagonal_prior(
    at_mode: ModelAtMode, layout: Layout, args: tuple, kwargs: dict[str, Any]
) -> DiagonalPrior:
    """The second derivatives in each entry.

    Raises:
        ValueError: If the prior couples the entries of one site.
    """
    first, second = at_mode.run(_diagonals, layout, args, kwargs)
    arrays = {}
    for name, one, other in zip(layout.names, first, second, strict=True):
        value, again = np.asarray(one), np.asarray(other)
        _check_finite(value, Layout.of({name: value.shape}))
        size = max(np.abs(value).max(), np.abs(again).max())
        if np.abs(value - again).max() > 1e-3 * size:
            raise ValueError(
                f"the prior of the site {name!r} couples its entries (its second "
                "derivative is no diagonal matrix), which only structure='full' takes. "
                "Use it, or leave the site out with `where`."
            )
        alike = value.size > 0 and np.ptp(value) <= 1e-5 * size
        arrays[name] = one.reshape(-1)[0] if alike else one
    return DiagonalPrior(arrays, layout)


def _diagonals(
    at_mode: ModelAtMode, layout: Layout, args: tuple, kwargs: dict[str, Any]
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Two estimates of the diagonal of each site's own block, from two products.

    They agree if the block is diagonal.
    """
    start = at_mode.start

    def pair(name: str) -> tuple[jax.Array, jax.Array]:
        def gradient(value: jax.Array) -> jax.Array:
            def energy(v: jax.Array) -> jax.Array:
                return -at_mode.log_prior({**start, name: v}, args, kwargs)

            return jax.grad(energy)(value)

        _, pullback = jax.vjp(gradient, start[name])
        key, shape = jax.random.key(0), start[name].shape
        factors = jax.random.uniform(key, shape, start[name].dtype, 1.0, 2.0)
        ones = pullback(jnp.ones_like(factors))[0]
        return ones, pullback(factors)[0] / factors

    pairs = [pair(name) for name in layout.names]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def _check_finite(matrix: np.ndarray, layout: Layout) -> None:
    if not np.isfinite(matrix).all():
        site = layout.site_of(int(np.argwhere(~np.isfinite(matrix))[0, 0]))
        raise ValueError(
            f"the prior of the site {site!r} has no finite second derivative at the "
            "mode. A density that is not smooth there, such as Laplace at its centre, "
            "has no Laplace approximation: give the site another prior."
        )
