"""The heads of a HyperNetwork: each makes one parameter of the target from features."""

import abc
import math
from typing import ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pyrox_ppl._parameter import Parameter
from pyrox_ppl.nn._linear import align


class LowRankOffset(eqx.Module):
    r"""A function of a stored array, :math:`\theta_0 \mapsto \theta_0 + L R^\top`.

    Leading axes of ``left`` are contexts; they come first in the result.
    """

    left: jax.Array
    right: jax.Array

    def __call__(self, stored: jax.Array) -> jax.Array:
        """Add the offset; a kernel's trailing axes count as one."""
        offset = self.left @ jnp.swapaxes(self.right, -1, -2)
        offset = offset.reshape(*self.left.shape[:-2], *stored.shape)
        return align(jnp.asarray(stored), offset.ndim) + offset


class AbstractHead(eqx.Module):
    """Makes one parameter from a vector of features."""

    parameter_role: ClassVar[str] = "generator"

    @abc.abstractmethod
    def __call__(self, features: jax.Array) -> jax.Array | LowRankOffset:
        """Make the parameter, or a function that makes it from the stored array."""

    @abc.abstractmethod
    def target_shape(self) -> tuple[int, ...]:
        """Return the parameter's shape; a low-rank head flattens it to a matrix."""


class FullHead(AbstractHead):
    r"""Generates each entry: :math:`\theta = \mathrm{reshape}(G z) + \theta_0`."""

    weight: jax.Array
    bias: jax.Array

    @classmethod
    def init(
        cls, stored: jax.Array, features: int, spread: jax.Array, key: PRNGKeyArray
    ) -> Self:
        """Start at the stored value; entries vary by `spread` for z ~ N(0, I)."""
        # An entry of G z sums over the features, so its variance is `features` times
        # that of an entry of G.
        weight = _normal(key, (stored.size, features), spread / math.sqrt(features))
        # Copy the array: shared, it would be a tied leaf in a module that holds both
        # the head and the target.
        return cls(weight.astype(stored.dtype), jnp.array(stored, copy=True))

    def __call__(self, features: jax.Array) -> jax.Array:
        """Make the parameter."""
        return (self.weight @ features).reshape(self.bias.shape) + self.bias

    def target_shape(self) -> tuple[int, ...]:
        """Return the shape of the parameter."""
        return self.bias.shape


class LowRankHead(AbstractHead):
    r"""Adds a rank-r offset, :math:`\theta = \theta_0 + L(z) R^\top`, L linear in z."""

    weight: jax.Array
    bias: jax.Array
    right: jax.Array

    @classmethod
    def init(
        cls,
        stored: jax.Array,
        features: int,
        spread: jax.Array,
        rank: int,
        key: PRNGKeyArray,
    ) -> Self:
        """Start without an offset at z = 0; entries vary by `spread` for z ~ N(0, I).

        The two factors have the same scale, so that they learn at the same pace.
        """
        n_out, n_in = matrix_shape(stored.shape)
        left_key, right_key = jax.random.split(key)
        # An entry of L R^T is a sum of `rank` products, each of variance factor^4.
        factor = jnp.sqrt(spread / math.sqrt(rank))
        weight = _normal(
            left_key, (n_out * rank, features), factor / math.sqrt(features)
        )
        return cls(
            weight.astype(stored.dtype),
            jnp.zeros((n_out, rank), stored.dtype),
            _normal(right_key, (n_in, rank), factor).astype(stored.dtype),
        )

    def __call__(self, features: jax.Array) -> LowRankOffset:
        """Make the function that adds the offset."""
        left = (self.weight @ features).reshape(self.bias.shape) + self.bias
        return LowRankOffset(left, self.right)

    def target_shape(self) -> tuple[int, ...]:
        """Return the shape of the parameter as a matrix."""
        return (self.bias.shape[0], self.right.shape[0])


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Flatten a shape to that of a matrix: all axes but the first become one."""
    return shape[0], math.prod(shape[1:])


def low_rank_is_smaller(shape: tuple[int, ...], rank: int, features: int) -> bool:
    """Whether a head of this rank has fewer parameters than the full one."""
    if len(shape) < 2:
        return False
    n_out, n_in = matrix_shape(shape)
    low = rank * (n_out * (features + 1) + n_in)
    return low < n_out * n_in * (features + 1)


def parameter_scale(stored: jax.Array, parameter: Parameter) -> jax.Array:
    """Compute the root mean square of a parameter; for zeros, a linear layer's."""
    entries = jnp.abs(jnp.asarray(stored, jnp.promote_types(stored.dtype, jnp.float32)))
    # Divide by the largest entry first: squares of large or tiny entries would
    # overflow or vanish.
    largest = jnp.max(entries, initial=0.0)
    relative = entries / jnp.where(largest > 0, largest, 1.0)
    rms = largest * jnp.sqrt(jnp.sum(jnp.square(relative)) / max(stored.size, 1))
    # A linear layer's weights are uniform on +-n^(-1/2), of variance 1 / (3 n).
    return jnp.where(rms > 0, rms, 1.0 / math.sqrt(3.0 * parameter.fan_in))


def _normal(key: PRNGKeyArray, shape: tuple[int, ...], std: jax.Array) -> jax.Array:
    return std * jax.random.normal(key, shape, std.dtype)
