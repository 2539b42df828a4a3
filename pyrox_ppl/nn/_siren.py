"""SIREN: networks with sine activations, and their layers."""

import math
from typing import Any, Literal, Self

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from pyrox_ppl._bind import AbstractModule, bind
from pyrox_ppl.nn._check import check_positive, check_size, check_width
from pyrox_ppl.nn._linear import PHASE, linear
from pyrox_ppl.nn._sine import sin

Regime = Literal["first", "hidden", "last"]


def half_widths(
    in_features: int, regime: Regime, omega: float, c: float
) -> tuple[float, float]:
    """Return the half-widths of the uniform draws of a layer's weights and biases."""
    # Theorem 1: a sine's outputs are about arcsine-distributed on [-1, 1], of variance
    # 1/2. With n of them as inputs, weights of variance c / (3 n omega^2) give
    # omega W x the variance c / 6. The first layer takes coordinates in [-1, 1]:
    # weights up to 1/n keep |W x| below 1, so its phases span up to +-omega. The biases
    # are those of PyTorch's linear layer, which the authors' code uses.
    first = regime == "first"
    limit = 1.0 / in_features if first else math.sqrt(c / in_features) / omega
    return limit, 1.0 / math.sqrt(in_features)


class SirenDense(AbstractModule):
    r"""One layer of a SIREN, :math:`y = \sin(\omega (W x + b))`; the last has no sine.

    Theorem 1 gives three regimes for n inputs: ``first``, :math:`W \sim U(\pm 1/n)`,
    spreads the inputs over several periods; ``hidden``, :math:`W \sim
    U(\pm\sqrt{c/n}/\omega)`, keeps the standard deviation of :math:`\omega W x` at 1
    (for c = 6) at every depth; ``last`` is linear, with weights drawn as in ``hidden``.
    The biases are :math:`b \sim U(\pm n^{-1/2})`.

    **Shapes**: ``x`` ``(*batch, in_features)``; the result is
    ``(*batch, out_features)``.

    **Sites** under a handler: ``siren_dense.weight`` of shape ``(out_features,
    in_features)`` and ``siren_dense.bias`` of shape ``(out_features,)``.

    Raises:
        ValueError: If ``x`` is not `in_features` wide.

    References:
        Sitzmann, Martel, Bergman, Lindell, Wetzstein (2020). Implicit neural
        representations with periodic activation functions. NeurIPS. Theorem 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pyrox_ppl.nn import SirenDense
        >>> layer = SirenDense.init(2, 16, regime="first", key=jax.random.key(0))
        >>> layer(jnp.ones((5, 2))).shape
        (5, 16)
    """

    weight: jax.Array
    bias: jax.Array
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)
    omega: float = eqx.field(static=True)
    regime: Regime = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        in_features: int,
        out_features: int,
        *,
        key: PRNGKeyArray,
        regime: Regime = "hidden",
        omega: float = 30.0,
        c: float = 6.0,
    ) -> Self:
        """Draw the weights of a regime.

        Args:
            in_features: The width of ``x``.
            out_features: The width of the result.
            key: A JAX PRNG key.
            regime: ``"first"``, ``"hidden"`` or ``"last"``.
            omega: The frequency factor, in radians per unit of the pre-activation.
            c: The constant of Theorem 1; 6 gives unit variance.

        Raises:
            ValueError: If a size, `omega` or `c` is not positive, or if the regime is
                unknown.
        """
        check_size(in_features=in_features, out_features=out_features)
        check_positive(omega=omega, c=c)
        if regime not in ("first", "hidden", "last"):
            raise ValueError(
                f"regime must be 'first', 'hidden' or 'last', got {regime!r}."
            )
        limit, bias_limit = half_widths(in_features, regime, omega, c)
        weight_key, bias_key = jax.random.split(key)
        shape = (out_features, in_features)
        return cls(
            jax.random.uniform(weight_key, shape, minval=-limit, maxval=limit),
            jax.random.uniform(
                bias_key, (out_features,), minval=-bias_limit, maxval=bias_limit
            ),
            in_features,
            out_features,
            omega,
            regime,
        )

    def forward(self, x: Any, *, key: PRNGKeyArray | None = None) -> jax.Array:
        """Compute ``sin(omega (W x + b))``; `key` is accepted and ignored."""
        return self.activate(self.preactivate(x))

    def preactivate(self, x: Any) -> jax.Array:
        """Compute what the sine takes: ``omega (W x + b)``; in ``last``, ``W x + b``.

        It reads the parameters as a call does: in one handler block both use one value.
        """
        x = check_width(self, "x", x, "in_features", self.in_features)
        layer = bind(self)
        precision = PHASE if self.regime == "first" else None
        affine = linear(layer.weight, layer.bias, x, precision)
        return affine if self.regime == "last" else self.omega * affine

    def activate(self, h: jax.Array) -> jax.Array:
        """Compute ``sin(h)``; in ``last``, return ``h``."""
        return h if self.regime == "last" else sin(h)


class SIREN(AbstractModule):
    r"""A network of sine layers, :math:`f = W_d\, s_{d-1} \circ \dots \circ s_1 + b_d`.

    Each :math:`s_l` is a :class:`SirenDense`; the readout is linear.

    **Shapes**: ``x`` ``(*batch, in_features)``; the result is
    ``(*batch, out_features)``.

    **Sites** under a handler: ``siren.layers.<l>.weight`` and ``siren.layers.<l>.bias``
    for l from 0 to depth - 1.

    Raises:
        ValueError: If ``x`` is not `in_features` wide.

    References:
        Sitzmann, Martel, Bergman, Lindell, Wetzstein (2020). Implicit neural
        representations with periodic activation functions. NeurIPS.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pyrox_ppl.nn import SIREN
        >>> net = SIREN.init(2, 32, 1, depth=4, key=jax.random.key(0))
        >>> net(jnp.ones((5, 2))).shape
        (5, 1)
    """

    layers: tuple[SirenDense, ...]

    @classmethod
    def init(
        cls,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        depth: int,
        key: PRNGKeyArray,
        first_omega: float = 30.0,
        hidden_omega: float = 30.0,
        c: float = 6.0,
    ) -> Self:
        """Draw the weights of the three regimes.

        Args:
            in_features: The width of ``x``, coordinates scaled to about [-1, 1].
            hidden_features: The width of every hidden layer.
            out_features: The width of the result.
            depth: The number of layers including the readout; at least 2.
            key: A JAX PRNG key.
            first_omega: The frequency factor of the first layer: the field's
                bandwidth, in radians per unit of ``x``.
            hidden_omega: The frequency factor of the hidden layers and the readout.
            c: The constant of Theorem 1.

        Raises:
            ValueError: If a size or a factor is not positive, or `depth` is below 2.
        """
        check_size(
            in_features=in_features,
            hidden_features=hidden_features,
            out_features=out_features,
            depth=depth,
        )
        check_positive(first_omega=first_omega, hidden_omega=hidden_omega, c=c)
        if depth < 2:
            raise ValueError(
                f"depth counts the readout and must be at least 2, got {depth}."
            )
        widths = [in_features, *[hidden_features] * (depth - 1), out_features]
        hidden: list[Regime] = ["hidden"] * (depth - 2)
        regimes: list[Regime] = ["first", *hidden, "last"]
        return cls(
            tuple(
                SirenDense.init(
                    widths[i],
                    widths[i + 1],
                    key=layer_key,
                    regime=regime,
                    omega=first_omega if regime == "first" else hidden_omega,
                    c=c,
                )
                for i, (regime, layer_key) in enumerate(
                    zip(regimes, jax.random.split(key, depth), strict=True)
                )
            )
        )

    def forward(self, x: Any, *, key: PRNGKeyArray | None = None) -> jax.Array:
        """Apply layer after layer; `key` is accepted and ignored."""
        x = check_width(self, "x", x, "in_features", self.layers[0].in_features)
        for layer in self.layers:
            x = layer(x)
        return x
