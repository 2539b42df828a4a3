"""AffineModulation (FiLM): conditions by a feature-wise scale and shift."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pyrox_ppl._bind import bind
from pyrox_ppl.nn._check import check_size, check_width
from pyrox_ppl.nn._conditioner import AbstractConditioner
from pyrox_ppl.nn._linear import align, linear


class _Gamma(NamedTuple):
    """The map from the raw output to the scale, and the raw output for scale 1."""

    activation: Callable[[jax.Array], jax.Array]
    identity: float


_GAMMAS = {
    "one_plus_tanh": _Gamma(lambda raw: 1.0 + jnp.tanh(raw), 0.0),
    "exp": _Gamma(jnp.exp, 0.0),
    # log(1 + e^r) = 1 at r = log(e - 1).
    "softplus": _Gamma(jax.nn.softplus, math.log(math.e - 1.0)),
    "identity": _Gamma(lambda raw: raw, 1.0),
}


class AffineModulation(AbstractConditioner):
    r"""Feature-wise linear modulation (FiLM), :math:`y = \gamma(z) \odot h + \beta(z)`.

    One linear generator makes both halves, :math:`(\beta, r) = G z + g`, and
    :math:`\gamma` is :math:`1 + \tanh r` (``one_plus_tanh``: a scale between 0 and 2),
    :math:`e^r` (``exp``: positive, hence invertible in ``h``),
    :math:`\log(1 + e^r)` (``softplus``) or :math:`r` (``identity``). :math:`G` starts
    at zero and :math:`g` at the value that gives :math:`\gamma = 1, \beta = 0`, so at
    construction ``y = h`` for *every* z. There are :math:`2CK + 2C` parameters.

    **Shapes**: ``h`` ``(*batch, C)``, ``z`` ``(K,)`` or ``(*batch, K)``; the result is
    ``(*batch, C)``.

    **Sites** under a handler: ``affine_modulation.generator.weight`` of shape
    ``(2C, K)`` and ``affine_modulation.generator.bias`` of shape ``(2C,)``.

    Raises:
        ValueError: If ``h`` is not `num_features` wide or ``z`` not `cond_dim`, or if
            the batch axes of ``z`` do not broadcast.

    References:
        Perez et al. (2018). FiLM: Visual reasoning with a general conditioning layer.
        AAAI.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pyrox_ppl.nn import FiLM
        >>> film = FiLM.init(3, 2, key=jax.random.key(0), gamma_activation="exp")
        >>> h = jnp.array([[1.0, 2.0, 3.0]])
        >>> bool(jnp.all(film(h, jnp.array([0.3, -7.0])) == h))
        True
        >>> film.log_det(jnp.ones(2)).shape
        ()
    """

    generator: eqx.nn.Linear
    num_features: int = eqx.field(static=True)
    cond_dim: int = eqx.field(static=True)
    gamma_activation: str = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        num_features: int,
        cond_dim: int,
        *,
        key: PRNGKeyArray,
        gamma_activation: Literal[
            "one_plus_tanh", "exp", "softplus", "identity"
        ] = "one_plus_tanh",
    ) -> Self:
        """Make a modulation that starts as the identity.

        Args:
            num_features: C, the width of ``h`` and of the result.
            cond_dim: K, the width of the context ``z``.
            key: A JAX PRNG key. It has no effect, because all initial values are fixed;
                it keeps the signature of the other conditioners.
            gamma_activation: The map from the raw output to the scale.

        Raises:
            ValueError: If `gamma_activation` is none of the four.
        """
        check_size(num_features=num_features, cond_dim=cond_dim)
        if gamma_activation not in _GAMMAS:
            raise ValueError(
                f"gamma_activation must be one of {sorted(_GAMMAS)}, got "
                f"{gamma_activation!r}."
            )
        start = eqx.nn.Linear(cond_dim, 2 * num_features, key=key)
        dtype = start.weight.dtype
        raw = jnp.full((num_features,), _GAMMAS[gamma_activation].identity, dtype)
        generator = eqx.tree_at(
            lambda layer: (layer.weight, layer.bias),
            start,
            (
                jnp.zeros_like(start.weight),
                jnp.concatenate([jnp.zeros((num_features,), dtype), raw]),
            ),
        )
        return cls(
            generator=generator,
            num_features=num_features,
            cond_dim=cond_dim,
            gamma_activation=gamma_activation,
        )

    def condition(self, h: jax.Array, z: jax.Array) -> jax.Array:
        """Compute ``gamma(z) * h + beta(z)``."""
        beta, raw = self._generate(z)
        gamma = _GAMMAS[self.gamma_activation].activation(raw)
        ndim = max(h.ndim, z.ndim)
        return align(gamma, ndim) * align(h, ndim) + align(beta, ndim)

    def log_det(self, z: Any) -> jax.Array:
        r"""Compute the log-determinant of ``h -> y``, :math:`\sum_c \log\gamma_c(z)`.

        It reads the parameters as a call does: in one handler block both use one value.

        Args:
            z: Contexts of shape ``(*batch, K)``.

        Returns:
            An array of shape ``(*batch,)``, in nats.

        Raises:
            NotImplementedError: If `gamma_activation` is not ``"exp"``, the only one
                whose scale is always positive and whose logarithm is the raw output.
        """
        if self.gamma_activation != "exp":
            raise NotImplementedError(
                f"log_det needs gamma_activation='exp', but this module has "
                f"{self.gamma_activation!r}, whose map may not be invertible."
            )
        z = check_width(self, "z", z, "cond_dim", self.cond_dim)
        return bind(self)._generate(z)[1].sum(-1)

    def _generate(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Generate the shift and the raw scale, each of shape (*batch, C)."""
        out = linear(self.generator.weight, self.generator.bias, z)
        return out[..., : self.num_features], out[..., self.num_features :]


FiLM = AffineModulation
