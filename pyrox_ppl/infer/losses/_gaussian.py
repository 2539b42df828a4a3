"""Normal arrays that have not been drawn, and operations on them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pyrox_ppl._jaxpr import bind_eqn
from pyrox_ppl.infer.losses._noise import standard_normal


class Gaussian(NamedTuple):
    """A normal array that has not been drawn.

    Attributes:
        loc: Its mean.
        variance: Its variance.
        shift: One draw of it, less the mean.
    """

    loc: jax.Array
    variance: jax.Array
    shift: jax.Array


class Pending(NamedTuple):
    """A normal array with one reader: a sum is drawn with one noise, not with two."""

    mean: jax.Array
    variance: jax.Array
    key: jax.Array

    def draw(self) -> jax.Array:
        """Draw it."""
        positive = self.variance > 0
        # The root has no derivative at zero, which a row of zeros reaches.
        scale = jnp.sqrt(jnp.where(positive, self.variance, 1))
        noise = standard_normal(self.key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.where(positive, scale, 0) * noise


def apply_without_weights(eqn: Any, values: list[Any]) -> list[Any]:
    """Apply an operation without weights; a sum may be drawn later."""
    pending = [k for k, value in enumerate(values) if isinstance(value, Pending)]
    name = eqn.primitive.name
    if pending and name in ("add", "add_any"):
        out = eqn.outvars[0].aval.shape
        means = [v.mean if isinstance(v, Pending) else v for v in values]
        if all(values[k].mean.shape == out for k in pending):
            variance = sum(values[k].variance for k in pending)
            key = values[pending[0]].key
            return [Pending(bind_eqn(eqn, means)[0], jnp.asarray(variance), key)]
    if pending and name in ("transpose", "squeeze", "reshape"):
        value = values[0]
        mean, variance = (bind_eqn(eqn, [v])[0] for v in (value.mean, value.variance))
        return [Pending(mean, variance, value.key)]
    return bind_eqn(eqn, [drawn(value) for value in values])


def add_gaussians(eqn: Any, values: list[Gaussian]) -> Gaussian:
    """Add or subtract independent normals."""
    loc, shift = (
        bind_eqn(eqn, [getattr(v, part) for v in values])[0]
        for part in ("loc", "shift")
    )
    variances = [jnp.broadcast_to(v.variance, loc.shape) for v in values]
    return Gaussian(loc, variances[0] + variances[1], shift)


def is_whole_convolution(eqn: Any) -> bool:
    """Whether it is a convolution in which each output reads every input channel."""
    groups = ("feature_group_count", "batch_group_count")
    return eqn.primitive.name == "conv_general_dilated" and all(
        eqn.params[name] == 1 for name in groups
    )


def multiply_both(
    eqn: Any, k: int, value: Gaussian, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The products of the mean and of the shift with the same rows of data.

    A convolution takes both as one kernel, which costs far less than two: most of its
    time goes to the windows.
    """
    if is_whole_convolution(eqn):
        numbers = eqn.params["dimension_numbers"]
        kernel = jnp.concatenate([value.loc, value.shift], numbers.rhs_spec[0])
        (both,) = bind_eqn(eqn, [x, kernel])
        mean, shifted = jnp.split(both, 2, numbers.out_spec[1])
        return mean, shifted
    mean, shifted = (
        bind_eqn(eqn, [w, x] if k == 0 else [x, w])[0] for w in (value.loc, value.shift)
    )
    return mean, shifted


def drawn(value: Any) -> Any:
    return value.draw() if isinstance(value, Pending) else value


def shorten(shape: Sequence[int], keep: Sequence[bool]) -> tuple[int, ...]:
    """The shape with size 1 along the axes that share their noise."""
    return tuple(size if k else 1 for size, k in zip(shape, keep, strict=True))
