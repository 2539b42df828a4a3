"""AbstractConditioner: the base class of all conditioners c(h, z)."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float

from pyrox_ppl._bind import AbstractModule
from pyrox_ppl.nn._check import check_batch, check_width


class AbstractConditioner(AbstractModule):
    """A deterministic map ``c(h, z) -> y`` of features, conditioned on a context.

    A call reads the parameters (*generators*, which handlers select by default), checks
    the shapes once and evaluates `condition`. A subclass has the fields named in
    `widths`, the field ``cond_dim`` and an ``init`` that takes these names; it writes
    only `condition`.

    **Shapes**: ``h`` is ``(*batch, C)`` with any number of batch axes; ``z`` is
    ``(K,)``, or ``(*batch, K)`` where axes of size 1 broadcast; the result is
    ``(*batch, out)``.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> from numpyro.handlers import seed
        >>> class Gate(px.nn.AbstractConditioner):
        ...     generator: eqx.nn.Linear
        ...     num_features: int = eqx.field(static=True)
        ...     cond_dim: int = eqx.field(static=True)
        ...     def condition(self, h, z):
        ...         return h * jax.nn.sigmoid(z @ self.generator.weight.T)
        >>> linear = eqx.nn.Linear(2, 3, use_bias=False, key=jax.random.key(0))
        >>> gate = Gate(linear, num_features=3, cond_dim=2)
        >>> with seed(rng_seed=0), px.bayesianize():
        ...     print(gate(jnp.ones((5, 3)), jnp.ones((5, 2))).shape)
        (5, 3)
    """

    parameter_role: ClassVar[str] = "generator"
    # The arguments of `init` that are feature widths; the first is that of `h`.
    widths: ClassVar[tuple[str, ...]] = ("num_features",)

    cond_dim: eqx.AbstractVar[int]

    def forward(self, h: Any, z: Any) -> jax.Array:
        """Check the shapes, then evaluate `condition`."""
        width = self.widths[0]
        h = check_width(self, "h", h, width, getattr(self, width))
        z = check_width(self, "z", z, "cond_dim", self.cond_dim)
        check_batch(self, h, z, "h")
        return self.condition(h, z)

    @abc.abstractmethod
    def condition(
        self, h: Float[Array, "*#batch C"], z: Float[Array, "*#batch K"]
    ) -> Float[Array, "*#batch out"]:
        """Evaluate ``c(h, z)`` with checked shapes and with the parameters read."""
