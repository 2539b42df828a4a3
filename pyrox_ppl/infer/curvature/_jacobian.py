r"""Products with the Jacobian of the whitened parameters, forward and backward.

The forward product is the transpose of the backward one, which is the derivative that a
fit took as well: a function with a ``custom_vjp`` has no other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from pyrox_ppl.infer.curvature._at_mode import ModelAtMode
from pyrox_ppl.infer.curvature._layout import Layout


class Jacobian(NamedTuple):
    """The Jacobian J of the whitened parameters of one batch, as a linear map.

    Attributes:
        num_outputs: How many whitened parameters there are.
        forward: J v.
        backward: J^T w.
    """

    num_outputs: int
    forward: Callable[[jax.Array], jax.Array]
    backward: Callable[[jax.Array], jax.Array]

    def product(self, vector: jax.Array) -> jax.Array:
        """J^T J v."""
        return self.backward(self.forward(vector))

    def diagonal(self, size: int, dtype: Any) -> jax.Array:
        """The diagonal of J^T J, one product forward for each entry."""

        def entry(index: jax.Array) -> jax.Array:
            column = self.forward((jnp.arange(size) == index).astype(dtype))
            return jnp.sum(jnp.square(column))

        return lax.map(entry, jnp.arange(size), batch_size=16)


def jacobian_at_mode(
    at_mode: ModelAtMode,
    layout: Layout,
    key: jax.Array | None,
    args: tuple,
    kwargs: dict[str, Any],
) -> Jacobian:
    """The Jacobian at the mode for one batch."""

    def outputs(vector: jax.Array) -> jax.Array:
        u = layout.unravel(vector)
        found = at_mode.whitened(u, key, args, kwargs)
        return ravel_pytree([whitened.parts for whitened in found.values()])[0]

    start = layout.ravel(at_mode.start)
    z, pullback = jax.vjp(outputs, start)
    _, pushforward = jax.vjp(lambda w: pullback(w)[0], jnp.zeros_like(z))
    return Jacobian(z.size, lambda v: pushforward(v)[0], lambda w: pullback(w)[0])
