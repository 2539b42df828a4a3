r"""The leading eigenvectors of the curvature, by products with vectors only.

A randomised subspace iteration: each pass through the data multiplies an orthonormal
basis :math:`Q` with :math:`H`; the last one gives the approximation of Nyström,
:math:`H \approx Y (Q^\top Y)^{+} Y^\top` with :math:`Y = H Q`, cut at the rank. The
precision of the posterior is that of the prior in all other directions.

References:
    Halko, N., Martinsson, P. G., Tropp, J. A. (2011). Finding Structure with
    Randomness. SIAM Review 53(2).
"""

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
from pyrox_ppl.infer.curvature._jacobian import jacobian_at_mode
from pyrox_ppl.infer.curvature._layout import Layout
from pyrox_ppl.infer.curvature._prior import DiagonalPrior

# More columns than the rank: the iteration then converges in a few passes.
_EXTRA = 10
_PASSES = 3
_CHUNK = 4


class LowRank(AbstractCurvature):
    """Eigenvectors of the largest eigenvalues; with the rank it converges to all."""

    arrays: Values
    layout: Layout = eqx.field(static=True)

    @classmethod
    def zeros(cls, layout: Layout, rank: int) -> Self:
        """A curvature of no data, with a random basis that is always the same one."""
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank must be a positive integer, got {rank!r}.")
        rank = min(rank, layout.size)
        width = min(rank + _EXTRA, layout.size)
        noise = jax.random.normal(jax.random.key(0), (layout.size, width))
        arrays = {
            "basis": jnp.linalg.qr(noise)[0],
            "image": jnp.zeros_like(noise),
            "passes_left": jnp.asarray(_PASSES),
            "rank": jnp.asarray(rank),
        }
        return cls(arrays, layout)

    @property
    def num_passes(self) -> int:
        """How often the data must be gone through."""
        return _PASSES

    def add_batch(
        self,
        at_mode: ModelAtMode,
        args: tuple,
        kwargs: dict[str, Any],
        weight: jax.Array,
        key: jax.Array | None,
    ) -> Self:
        """Add the product of one batch's weighted curvature with the basis."""
        if "basis" not in self.arrays:
            raise ValueError(
                "this low-rank curvature is complete: make a new one for other data."
            )
        jacobian = jacobian_at_mode(at_mode, self.layout, key, args, kwargs)
        basis, image = self.arrays["basis"], self.arrays["image"]
        columns = lax.map(jacobian.product, basis.T, batch_size=_CHUNK)
        arrays = {**self.arrays, "image": image + weight * columns.T}
        return type(self)(arrays, self.layout)

    def finish_pass(self) -> Self:
        """Take the image for the basis; after the last pass, the eigenvectors."""
        image, left = self.arrays["image"], int(self.arrays["passes_left"]) - 1
        if left > 0:
            arrays = {
                **self.arrays,
                "basis": jnp.linalg.qr(image)[0],
                "image": jnp.zeros_like(image),
                "passes_left": jnp.asarray(left),
            }
            return type(self)(arrays, self.layout)
        rank = int(self.arrays["rank"])
        vectors, values = _nystrom(self.arrays["basis"], image)
        arrays = {"vectors": vectors[:, :rank], "values": values[:rank]}
        return type(self)(arrays, self.layout)

    def posterior(
        self, prior: DiagonalPrior, *, damping: Any = 0.0
    ) -> "LowRankPosterior":
        """The posterior with a prior's precision."""
        if "vectors" not in self.arrays:
            raise ValueError(
                f"the low-rank curvature needs {_PASSES} passes through the data, with "
                "finish_pass() after each of them."
            )
        precision = self.layout.ravel(prior.full()) + damping
        values, vectors = self.arrays["values"], self.arrays["vectors"]
        factor = vectors * jnp.sqrt(values) / jnp.sqrt(precision)[:, None]
        return LowRankPosterior(prior=precision, factor=factor, layout=self.layout)


class LowRankPosterior(AbstractPosterior):
    r"""A normal distribution with the precision P^(1/2) (I + K K^T) P^(1/2).

    Attributes:
        prior: The diagonal of P.
        factor: K.
    """

    prior: jax.Array
    factor: jax.Array
    layout: Layout = eqx.field(static=True)

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> Values:
        """Draw deviations from the mode."""
        noise = jax.random.normal(key, (*shape, len(self.prior)), self.prior.dtype)
        values, turned = self._directions()
        # (1 + l)^(-1/2) - 1 over l, without cancellation.
        shrink = -1 / (jnp.sqrt(1 + values) * (1 + jnp.sqrt(1 + values)))
        noise = noise + ((noise @ turned) * shrink) @ turned.T
        return self.layout.unravel(noise / jnp.sqrt(self.prior))

    def solve(self, values: Values) -> Values:
        """Multiply the covariance with a vector."""
        root = jnp.sqrt(self.prior)
        vector = self.layout.ravel(values) / root
        eigenvalues, turned = self._directions()
        vector = vector - ((vector @ turned) / (1 + eigenvalues)) @ turned.T
        return self.layout.unravel(vector / root)

    def log_det(self) -> jax.Array:
        """The log-determinant of the precision."""
        values = jnp.linalg.eigvalsh(self.factor.T @ self.factor)
        values = jnp.maximum(values, 0.0)
        return jnp.sum(jnp.log(self.prior)) + jnp.sum(jnp.log1p(values))

    def diagonal(self) -> Values:
        """The marginal variances."""
        values, turned = self._directions()
        removed = jnp.sum(turned**2 / (1 + values), -1)
        return self.layout.unravel((1 - removed) / self.prior)

    def check(self) -> None:
        """Raise a ValueError that names a site whose precision is not positive."""
        wrong = ~(np.asarray(self.prior) > 0)
        wrong |= ~np.isfinite(np.asarray(self.prior))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise_not_positive(
                self.layout.site_of(row), f"has the prior part {self.prior[row]:.2g}"
            )
        if not np.isfinite(np.asarray(self.factor)).all():
            row = int(np.argmax(~np.isfinite(np.asarray(self.factor)).all(-1)))
            raise_not_positive(self.layout.site_of(row), "is not finite")

    def _directions(self) -> tuple[jax.Array, jax.Array]:
        """The eigenvalues of K^T K, and K turned to its eigenvectors."""
        values, vectors = jnp.linalg.eigh(self.factor.T @ self.factor)
        return jnp.maximum(values, 0.0), self.factor @ vectors


@jax.jit
def _nystrom(basis: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors and eigenvalues, the largest first."""
    core = basis.T @ image
    values, turn = jnp.linalg.eigh((core + core.T) / 2)
    least = len(values) * jnp.finfo(values.dtype).eps * jnp.max(values)
    kept = values > jnp.maximum(least, jnp.finfo(values.dtype).tiny)
    root = jnp.where(kept, jnp.where(kept, values, 1.0) ** -0.5, 0.0)
    # H is about B B^T, whose eigenvectors follow from the small B^T B.
    outer = (image @ turn) * root
    values, turn = jnp.linalg.eigh(outer.T @ outer)
    values, turn = jnp.maximum(values[::-1], 0.0), turn[:, ::-1]
    kept = values > least
    root = jnp.where(kept, jnp.where(kept, values, 1.0) ** -0.5, 0.0)
    return (outer @ turn) * root, jnp.where(kept, values, 0.0)
