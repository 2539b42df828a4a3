"""HyperLinear: a linear layer whose weights are generated from the context."""

import math
from typing import Self

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from pyrox_ppl.nn._check import check_positive, check_size
from pyrox_ppl.nn._conditioner import AbstractConditioner
from pyrox_ppl.nn._contract import generated_linear


class HyperLinear(AbstractConditioner):
    r"""A linear layer generated from the context, :math:`y = W(z)\,h + b(z)`.

    One linear generator makes both, :math:`(\mathrm{vec}\,W, b) = G z + g`. There are
    :math:`K (C C_{in} + C)` parameters in G and :math:`C C_{in} + C` in g.

    At construction :math:`g` is drawn as an ordinary linear layer, uniform on
    :math:`\pm C_{in}^{-1/2}`, and :math:`G` is uniform on ``init_scale`` times
    :math:`\pm (K C_{in})^{-1/2}`. For :math:`z \sim N(0, I)` the generated layers then
    vary by ``init_scale`` around that layer, whatever K is.

    The weights of a context are generated once for all rows that share it. If every
    row has its own context, they are not built at all: the sum is taken in another
    order, in pieces, and a gradient keeps only the inputs.

    **Shapes**: ``h`` ``(*batch, C_in)``, ``z`` ``(K,)`` (one W for all rows) or
    ``(*batch, K)`` (one W per row); the result is ``(*batch, C)``.

    **Sites** under a handler: ``hyper_linear.generator.weight`` of shape
    ``(C * C_in + C, K)`` and ``hyper_linear.generator.bias`` of shape
    ``(C * C_in + C,)``.

    Raises:
        ValueError: If ``h`` is not `target_in` wide or ``z`` not `cond_dim`, or if the
            batch axes of ``z`` do not broadcast.

    References:
        Ha, Dai, Le (2017). HyperNetworks. ICLR.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pyrox_ppl.nn import HyperLinear
        >>> layer = HyperLinear.init(4, 8, 3, key=jax.random.key(0))
        >>> layer(jnp.ones((5, 4)), jnp.ones((5, 3))).shape
        (5, 8)
    """

    generator: eqx.nn.Linear
    target_in: int = eqx.field(static=True)
    target_out: int = eqx.field(static=True)
    cond_dim: int = eqx.field(static=True)

    widths = ("target_in", "target_out")

    @classmethod
    def init(
        cls,
        target_in: int,
        target_out: int,
        cond_dim: int,
        *,
        key: PRNGKeyArray,
        init_scale: float = 0.1,
    ) -> Self:
        """Draw a generator of layers.

        Args:
            target_in: C_in, the width of ``h``.
            target_out: C, the width of the result.
            cond_dim: K, the width of the context ``z``.
            key: A JAX PRNG key.
            init_scale: How much the generated layer varies with z, relative to the
                layer itself.
        """
        check_size(target_in=target_in, target_out=target_out, cond_dim=cond_dim)
        check_positive(init_scale=init_scale)
        size = target_out * target_in + target_out
        start = eqx.nn.Linear(cond_dim, size, key=key)
        half_width = 1.0 / math.sqrt(target_in)
        weight_key, bias_key = jax.random.split(key)
        dtype = start.weight.dtype
        # An entry of G z sums K products, so K times the variance of an entry of G.
        spread = init_scale * half_width / math.sqrt(cond_dim)
        generator = eqx.tree_at(
            lambda layer: (layer.weight, layer.bias),
            start,
            (
                jax.random.uniform(
                    weight_key, (size, cond_dim), dtype, -spread, spread
                ),
                jax.random.uniform(bias_key, (size,), dtype, -half_width, half_width),
            ),
        )
        return cls(
            generator=generator,
            target_in=target_in,
            target_out=target_out,
            cond_dim=cond_dim,
        )

    def condition(self, h: jax.Array, z: jax.Array) -> jax.Array:
        """Compute ``W(z) h + b(z)`` without building the weights of every row."""
        return generated_linear(self.generator.weight, self.generator.bias, z, h)
