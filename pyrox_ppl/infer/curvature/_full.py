"""The exact curvature: one matrix over all entries of all sites."""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pyrox_ppl.infer.curvature._at_mode import ModelAtMode, Values
from pyrox_ppl.infer.curvature._curvature import (
    AbstractCurvature,
    AbstractPosterior,
    raise_not_positive,
)
from pyrox_ppl.infer.curvature._jacobian import Jacobian, jacobian_at_mode
from pyrox_ppl.infer.curvature._layout import Layout
from pyrox_ppl.infer.curvature._prior import DensePrior

# The most numbers that one piece of a Jacobian may hold: 64 MiB in single precision.
_LARGEST = 2**24
_CHUNK = 32


class Full(AbstractCurvature):
    """The whole matrix: exact, for any model, in memory that grows as its size."""

    arrays: Values
    layout: Layout = eqx.field(static=True)

    @classmethod
    def zeros(cls, layout: Layout) -> Self:
        """A curvature of no data."""
        return cls({"full": jnp.zeros((layout.size, layout.size))}, layout)

    def add_batch(
        self,
        at_mode: ModelAtMode,
        args: tuple,
        kwargs: dict[str, Any],
        weight: jax.Array,
        key: jax.Array | None,
    ) -> Self:
        """Add the weighted curvature of one batch."""
        jacobian = jacobian_at_mode(at_mode, self.layout, key, args, kwargs)
        before = self.arrays["full"]
        matrix = gram(jacobian, self.layout.size, before.dtype)
        return type(self)({"full": before + weight * matrix}, self.layout)

    def posterior(self, prior: DensePrior, *, damping: Any = 0.0) -> "FullPosterior":
        """The posterior with a prior's precision."""
        precision = prior.arrays["precision"]
        precision = precision + damping * jnp.eye(len(precision))
        return FullPosterior.of(self.arrays["full"], precision, self.layout)


class FullPosterior(AbstractPosterior):
    """A normal distribution with a full covariance, as a root of it."""

    root: jax.Array
    log_determinant: jax.Array
    precision: jax.Array
    layout: Layout = eqx.field(static=True)

    @classmethod
    def of(cls, curvature: jax.Array, prior: jax.Array, layout: Layout) -> Self:
        """The posterior of a curvature and a prior's precision."""
        tril = lax.stop_gradient(jnp.linalg.cholesky(prior))
        proper = jnp.all(jnp.isfinite(tril))
        held = lax.stop_gradient((curvature, prior))
        root = lax.cond(proper, _root_by_prior, _root_of_sum, *held)
        log_det = lax.cond(proper, _log_det_by_prior, _log_det_of_sum, curvature, prior)
        return cls(
            root=root,
            log_determinant=log_det,
            precision=curvature + prior,
            layout=layout,
        )

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> Values:
        """Draw deviations from the mode."""
        noise = jax.random.normal(key, (*shape, len(self.root)), self.root.dtype)
        return self.layout.unravel(noise @ self.root.T)

    def solve(self, values: Values) -> Values:
        """Multiply the covariance with a vector."""
        vector = self.layout.ravel(values)
        return self.layout.unravel((vector @ self.root) @ self.root.T)

    def log_det(self) -> jax.Array:
        """The log-determinant of the precision."""
        return self.log_determinant

    def diagonal(self) -> Values:
        """The marginal variances."""
        return self.layout.unravel(jnp.sum(self.root**2, -1))

    def check(self) -> None:
        """Raise a ValueError that names a site whose precision is not positive."""
        if np.isfinite(self.root).all() and np.isfinite(self.log_determinant):
            return
        precision = np.asarray(self.precision, float)
        if not np.isfinite(precision).all():
            row = int(np.argwhere(~np.isfinite(precision))[0, 0])
            raise_not_positive(self.layout.site_of(row), "is not finite")
        values, vectors = np.linalg.eigh(_unit_diagonal(precision)[0])
        site = self.layout.site_of(int(np.abs(vectors[:, 0]).argmax()))
        raise_not_positive(site, f"has the relative eigenvalue {values[0]:.2g}")


def gram(jacobian: Jacobian, size: int, dtype: Any) -> jax.Array:
    """Compute J^T J in pieces that fit in memory."""
    if jacobian.num_outputs <= size:
        return _sum_of_rows(jacobian, size, dtype)
    basis = jnp.eye(size, dtype=dtype)
    if jacobian.num_outputs * size <= _LARGEST:
        columns = lax.map(jacobian.forward, basis, batch_size=_CHUNK)
        return columns @ columns.T
    chunk = max(1, min(_CHUNK, _LARGEST // jacobian.num_outputs))
    return lax.map(jacobian.product, basis, batch_size=chunk)


def _sum_of_rows(jacobian: Jacobian, size: int, dtype: Any) -> jax.Array:
    """Sum g g^T over the rows g of the Jacobian, some at a time."""
    num = jacobian.num_outputs
    chunk = max(1, min(_CHUNK, _LARGEST // size, num))

    def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        # Past the end the comparison is false everywhere: a row of zeros.
        picked = start + jnp.arange(chunk)[:, None] == jnp.arange(num)[None, :]
        rows = jax.vmap(jacobian.backward)(picked.astype(dtype))
        return total + rows.T @ rows, None

    total = jnp.zeros((size, size), dtype)
    return lax.scan(add, total, jnp.arange(0, num, chunk))[0]


def _whitened_by(curvature: jax.Array, prior: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L^-1 H L^-T for the prior's precision L L^T, and L.

    Its eigenvalues are those that the data add to a prior of one, so that the posterior
    is proper however few the data are.
    """
    tril = jnp.linalg.cholesky(prior)

    def solve(right: jax.Array) -> jax.Array:
        return lax.linalg.triangular_solve(tril, right, left_side=True, lower=True)

    inner = solve(solve(curvature).T)
    return (inner + inner.T) / 2, tril


def _root_by_prior(curvature: jax.Array, prior: jax.Array) -> jax.Array:
    inner, tril = _whitened_by(curvature, prior)
    values, vectors = jnp.linalg.eigh(inner)
    scaled = vectors / jnp.sqrt(1 + jnp.maximum(values, 0.0))[None, :]
    return lax.linalg.triangular_solve(
        tril, scaled, left_side=True, lower=True, transpose_a=True
    )


def _log_det_by_prior(curvature: jax.Array, prior: jax.Array) -> jax.Array:
    inner, tril = _whitened_by(curvature, prior)
    # Rounding makes small eigenvalues negative; they are zero.
    values = jnp.maximum(jnp.linalg.eigvalsh(inner), 0.0)
    return jnp.sum(jnp.log1p(values)) + 2 * jnp.sum(jnp.log(jnp.diagonal(tril)))


def _unit_diagonal(precision: Any) -> tuple[Any, Any]:
    """The matrix with a diagonal of ones, and the factors that make it so."""
    diagonal = precision.diagonal()
    scale = jnp.where(diagonal > 0, diagonal, 1.0) ** -0.5
    return precision * scale[:, None] * scale[None, :], scale


def _root_of_sum(curvature: jax.Array, prior: jax.Array) -> jax.Array:
    """The root where the prior alone is improper; NaN where the sum is as well."""
    scaled, scale = _unit_diagonal(curvature + prior)
    values, vectors = jnp.linalg.eigh(scaled)
    least = len(values) * jnp.finfo(values.dtype).eps
    values = jnp.where(values > least, values, jnp.nan)
    return scale[:, None] * vectors / jnp.sqrt(values)[None, :]


def _log_det_of_sum(curvature: jax.Array, prior: jax.Array) -> jax.Array:
    sign, value = jnp.linalg.slogdet(curvature + prior)
    return jnp.where(sign > 0, value, jnp.nan)
