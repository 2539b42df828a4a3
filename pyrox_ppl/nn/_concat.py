"""ConcatConditioner: conditions by concatenation."""

from typing import Self

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from pyrox_ppl.nn._check import check_size
from pyrox_ppl.nn._conditioner import AbstractConditioner
from pyrox_ppl.nn._linear import align, linear


class ConcatConditioner(AbstractConditioner):
    r"""Conditions by concatenation, :math:`y = W\,[h \,\Vert\, z] + b`.

    The two halves of :math:`W` are applied separately, so a single context is never
    repeated for every row. There are :math:`(C + K)\,C + C` parameters.

    **Shapes**: ``h`` ``(*batch, C)``, ``z`` ``(K,)`` or ``(*batch, K)``; the result is
    ``(*batch, C)``.

    **Sites** under a handler: ``concat_conditioner.generator.weight`` of shape
    ``(C, C + K)`` and ``concat_conditioner.generator.bias`` of shape ``(C,)``.

    Raises:
        ValueError: If ``h`` is not `num_features` wide or ``z`` not `cond_dim`, or if
            the batch axes of ``z`` do not broadcast.

    References:
        Dumoulin et al. (2018). Feature-wise transformations. Distill.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pyrox_ppl.nn import ConcatConditioner
        >>> c = ConcatConditioner.init(8, 3, key=jax.random.key(0))
        >>> c(jnp.ones((5, 8)), jnp.ones(3)).shape
        (5, 8)
    """

    generator: eqx.nn.Linear
    num_features: int = eqx.field(static=True)
    cond_dim: int = eqx.field(static=True)

    @classmethod
    def init(cls, num_features: int, cond_dim: int, *, key: PRNGKeyArray) -> Self:
        """Draw the weights as ``eqx.nn.Linear`` does.

        Args:
            num_features: C, the width of ``h`` and of the result.
            cond_dim: K, the width of the context ``z``.
            key: A JAX PRNG key.
        """
        check_size(num_features=num_features, cond_dim=cond_dim)
        layer = eqx.nn.Linear(num_features + cond_dim, num_features, key=key)
        return cls(generator=layer, num_features=num_features, cond_dim=cond_dim)

    def condition(self, h: jax.Array, z: jax.Array) -> jax.Array:
        """Compute ``[h, z] @ W.T + b``."""
        split = self.num_features
        weight, bias = self.generator.weight, self.generator.bias
        feature_part = linear(weight[:, :split], bias, h)
        context_part = linear(weight[:, split:], None, z)
        ndim = max(h.ndim, z.ndim)
        return align(feature_part, ndim) + align(context_part, ndim)
