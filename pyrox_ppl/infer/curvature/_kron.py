"""Kronecker factors of one site's curvature, and the posterior that they give.

A weight that maps inputs x to outputs with the gradients g has the curvature

    sum_n (x_n x_n^T) (x) (g_n g_n^T),

with one g for each column of the Fisher information's root. K-FAC replaces it by
A (x) G, where A is the mean of x x^T and G the sum of g g^T. Positions of a sequence or
an image, and several uses, count as data of their own (K-FAC-expand). A bias has the
input one, so its block is G.

References:
    Martens, J., Grosse, R. (2015). Optimizing Neural Networks with Kronecker-factored
    Approximate Curvature. ICML.
    Eschenhagen, R., Immer, A., Turner, R., Schneider, F., Hennig, P. (2023).
    Kronecker-Factored Approximate Curvature for Modern Neural Network Architectures.
    NeurIPS.
"""

import math
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pyrox_ppl.infer.curvature._arrange import Arranged
from pyrox_ppl.infer.curvature._curvature import raise_not_positive


def start_kron(
    name: str, form: Arranged, axes: tuple[int, ...], dtype: Any
) -> dict[str, jax.Array]:
    """Factors of no data."""
    blocks, inputs, outputs = form.entries.shape
    arrays = {f"{name}.outputs": jnp.zeros((blocks, outputs, outputs), dtype)}
    if form.inputs is not None:
        shape = (blocks, inputs) if form.lookup else (blocks, inputs, inputs)
        arrays[f"{name}.inputs"] = jnp.zeros(shape, dtype)
        arrays[f"{name}.count"] = jnp.zeros((), dtype)
        # The order of axes stands in a name, so that it is static where arrays are
        # traced, and survives a file.
        arrays[f"{name}.axes.{'_'.join(map(str, axes))}"] = jnp.zeros((), dtype)
    return arrays


def _axes_of(name: str, arrays: dict[str, jax.Array]) -> tuple[int, ...] | None:
    """The order of a site's axes; None for the input one."""
    start = f"{name}.axes."
    for key in arrays:
        if key.startswith(start):
            return tuple(int(a) for a in key.removeprefix(start).split("_") if a)
    return None


def sum_outputs(form: Arranged, gradient: Any, slope: Any) -> jax.Array:
    """The sum of g g^T over positions, in the order of a bias's own entries."""
    g = form.gradient(gradient)
    if slope is not None:
        g = g * jnp.mean(slope)
    if form.inputs is None:
        g = g[..., np.argsort(form.entries.reshape(-1))]
    return jnp.einsum("pbo,pbq->boq", g, g)


def sum_inputs(form: Arranged, data: Any, active: jax.Array, dtype: Any) -> jax.Array:
    """The sum of x x^T over the positions that are not masked."""
    if form.inputs is None:
        raise TypeError("a use without inputs has no such factor.")
    x = form.inputs(data)
    if form.lookup:
        total = jnp.zeros(form.entries.shape[:2], dtype)
        return total.at[0, x].add(active.astype(dtype))
    x = x.astype(dtype)
    return jnp.einsum("pbi,pbj->bij", x * active[:, None, None], x)


class KronPosterior(eqx.Module):
    r"""One site's normal posterior, by the eigenvectors of its factors.

    The precision is :math:`D^{1/2} (A' \otimes G' + s I) D^{1/2}`. The prior's part is
    :math:`s D`, with :math:`D` a product of a vector over inputs and one over outputs;
    :math:`D = I` for a prior that is the same for all entries.
    """

    input_vectors: jax.Array | None
    input_values: jax.Array
    output_vectors: jax.Array
    output_values: jax.Array
    prior: jax.Array
    input_scale: jax.Array
    output_scale: jax.Array
    residual: jax.Array
    name: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    axes: tuple[int, ...] | None = eqx.field(static=True)

    @classmethod
    def of(
        cls,
        name: str,
        arrays: dict[str, jax.Array],
        prior: jax.Array,
        shape: tuple[int, ...],
    ) -> Self:
        """The posterior of a site's factors and a prior's precision, by entry or ()."""
        outputs = arrays[f"{name}.outputs"]
        axes = _axes_of(name, arrays)
        blocks, num_out = outputs.shape[:2]
        num_in = math.prod(shape) // (blocks * num_out)
        form = cls._arrange_with(axes, shape, (blocks, num_in, num_out))
        s, d_in, d_out, residual = _separate(prior, form, (blocks, num_in, num_out))
        root_in, root_out = (lax.stop_gradient(jnp.sqrt(d)) for d in (d_in, d_out))
        inner = outputs / root_out[:, :, None] / root_out[:, None, :]
        output_values, output_vectors = jnp.linalg.eigh(inner)
        if axes is None:
            values, vectors = jnp.ones((blocks, num_in), outputs.dtype), None
            values = values / d_in
        else:
            mean = arrays[f"{name}.inputs"] / arrays[f"{name}.count"]
            if mean.ndim == 2:
                values, vectors = mean / lax.stop_gradient(d_in), None
            else:
                mean = mean / root_in[:, :, None] / root_in[:, None, :]
                values, vectors = jnp.linalg.eigh(mean)
        return cls(
            vectors,
            jnp.maximum(values, 0.0),
            output_vectors,
            jnp.maximum(output_values, 0.0),
            s,
            root_in,
            root_out,
            residual,
            name,
            shape,
            axes,
        )

    @staticmethod
    def _arrange_with(axes: tuple | None, shape: tuple[int, ...], sizes: tuple) -> Any:
        def arrange(value: jax.Array) -> jax.Array:
            batch = value.shape[: value.ndim - len(shape)]
            if axes is not None:
                value = _permute(value, axes, len(shape))
            return value.reshape(*batch, *sizes)

        return arrange

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draw deviations from the mode."""
        sizes = self._sizes
        noise = jax.random.normal(key, (*shape, *sizes), self.output_values.dtype)
        turned = self._turn(noise / jnp.sqrt(self._precision()))
        return self._restore(turned / self._roots())

    def solve(self, value: jax.Array) -> jax.Array:
        """Multiply the covariance with a vector."""
        arrange = self._arrange_with(self.axes, self.shape, self._sizes)
        inner = self._turn_back(arrange(value) / self._roots())
        inner = self._turn(inner / self._precision())
        return self._restore(inner / self._roots())

    def log_det(self) -> jax.Array:
        """The log-determinant of the precision."""
        roots = jnp.log(jnp.broadcast_to(self._roots(), self._sizes))
        return jnp.sum(jnp.log(self._precision())) + 2 * jnp.sum(roots)

    def diagonal(self) -> jax.Array:
        """The marginal variances."""
        inner = 1 / self._precision()
        if self.input_vectors is not None:
            inner = jnp.einsum("bia,bao->bio", self.input_vectors**2, inner)
        inner = jnp.einsum("bio,bqo->biq", inner, self.output_vectors**2)
        return self._restore(inner / self._roots() ** 2)

    def check(self) -> None:
        """Raise a ValueError if the precision is not positive, or no product."""
        residual, precision = float(self.residual), np.asarray(self._precision())
        if not np.isfinite(precision).all():
            raise_not_positive(self.name, "is not finite")
        if residual > 1e-3:
            raise ValueError(
                f"the prior of the site {self.name!r} has precisions that differ from "
                "entry to entry in a way that is no product of inputs and outputs, so "
                "Kronecker factors cannot be combined with it. Use structure='diag', "
                "'low_rank' or 'full', or a prior with one scale for the site."
            )
        least = precision.size * np.finfo(precision.dtype).eps * precision.max()
        prior = float(np.min(self.prior))
        if not precision.min() > 0 or (prior <= 0 and precision.min() <= least):
            raise_not_positive(self.name, f"has the eigenvalue {precision.min():.2g}")

    @property
    def _sizes(self) -> tuple[int, int, int]:
        blocks, outputs = self.output_values.shape
        return blocks, self.input_values.shape[1], outputs

    def _roots(self) -> jax.Array:
        return self.input_scale[:, :, None] * self.output_scale[:, None, :]

    def _precision(self) -> jax.Array:
        """The eigenvalues of the inner matrix."""
        products = self.input_values[:, :, None] * self.output_values[:, None, :]
        return products + self.prior

    def _turn(self, inner: jax.Array) -> jax.Array:
        if self.input_vectors is not None:
            inner = jnp.einsum("bia,...bao->...bio", self.input_vectors, inner)
        return jnp.einsum("...bio,bqo->...biq", inner, self.output_vectors)

    def _turn_back(self, value: jax.Array) -> jax.Array:
        if self.input_vectors is not None:
            value = jnp.einsum("bia,...bio->...bao", self.input_vectors, value)
        return jnp.einsum("...biq,bqo->...bio", value, self.output_vectors)

    def _restore(self, value: jax.Array) -> jax.Array:
        """From blocks, inputs and outputs to the site's own shape."""
        batch = value.shape[:-3]
        if self.axes is None:
            return value.reshape(*batch, *self.shape)
        sizes = tuple(self.shape[a] for a in self.axes)
        back = tuple(np.argsort(self.axes).tolist())
        return _permute(value.reshape(*batch, *sizes), back, len(self.shape))


def _permute(value: jax.Array, axes: tuple[int, ...], ndim: int) -> jax.Array:
    start = value.ndim - ndim
    return jnp.transpose(value, (*range(start), *(start + a for a in axes)))


def _separate(
    prior: jax.Array, arrange: Any, sizes: tuple[int, int, int]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """A precision as s d_in d_out, and how far it is from that product."""
    blocks, num_in, num_out = sizes
    if prior.ndim == 0:
        d_in, d_out = jnp.ones((blocks, num_in)), jnp.ones((blocks, num_out))
        return prior.reshape(1, 1, 1), d_in, d_out, jnp.zeros(())
    log = jnp.log(arrange(prior))
    centre = jnp.mean(log, (1, 2), keepdims=True)
    by_in = jnp.mean(log - centre, 2, keepdims=True)
    by_out = jnp.mean(log - centre, 1, keepdims=True)
    residual = jnp.max(jnp.abs(log - centre - by_in - by_out))
    # A tuned prior scales all entries alike: a derivative by these would pass through
    # eigenvectors, which have none where eigenvalues agree.
    d_in = lax.stop_gradient(jnp.exp(by_in[:, :, 0]))
    d_out = lax.stop_gradient(jnp.exp(by_out[:, 0]))
    return jnp.exp(centre), d_in, d_out, residual
