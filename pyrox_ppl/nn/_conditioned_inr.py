"""ConditionedINR: a coordinate network conditioned at its layers or its input."""

from collections.abc import Callable
from typing import Any, Literal, Self

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from pyrox_ppl._bind import AbstractModule
from pyrox_ppl.nn._check import check_batch, check_size, check_width
from pyrox_ppl.nn._conditioner import AbstractConditioner
from pyrox_ppl.nn._layers import (
    apply_layers,
    check_activations,
    check_layers,
    get_layers,
)
from pyrox_ppl.nn._rows import find_in_features, map_rows


class ConditionedINR(AbstractModule):
    r"""A neural field :math:`f(x; z)`: a coordinate network and its conditioners.

    ``mode="feature"`` puts a conditioner after each layer except the readout, on what
    its activation returns; ``mode="preactivation"`` puts it before the activation. For
    a layer :math:`h_l = s_l(a_l)` of a :class:`SIREN`, :math:`a_l = \omega_l (W_l
    h_{l-1} + b_l)` and :math:`s_l = \sin`, these are

    .. math:: h_l = c_l(s_l(a_l), z) \quad\text{and}\quad h_l = s_l(c_l(a_l, z)).

    With :class:`FiLM` the second is :math:`\sin(\gamma_l(z) \odot \omega_l (W_l h_{l-1}
    + b_l) + \beta_l(z))`: the context sets frequencies and phases, as in pi-GAN.

    In both modes the network must have ``layers`` (a :class:`SIREN`, an
    ``eqx.nn.MLP``, your own), and its call must apply them one after another: each
    hidden layer followed by ``activation``, the last by ``final_activation``, if the
    network has these. In preactivation mode a layer that contains its activation must
    have the methods ``preactivate(x)`` and ``activate(h)``, of which its call is the
    composition, as in :class:`SirenDense`.

    ``mode="input"`` puts one conditioner on the coordinates, :math:`f(c(x, z))`, of any
    callable of one point.

    The inner network is *backbone*: handlers leave it constant unless ``where`` selects
    it.

    **Shapes**: ``x`` ``(*batch, in_features)``, ``z`` ``(K,)`` or ``(*batch, K)`` where
    axes of size 1 broadcast; the result is ``(*batch, out_features)``.

    **Sites** under a handler: those of the conditioners, under
    ``conditioned_inr.conditioners.<l>``; if selected, those of the inner network under
    ``conditioned_inr.inner``.

    Raises:
        ValueError: If ``x`` or ``z`` has a wrong width, or their batch axes do not
            broadcast.

    References:
        Chan, Monteiro, Kellnhofer, Wu, Wetzstein (2021). pi-GAN: Periodic implicit
        generative adversarial networks for 3D-aware image synthesis. CVPR.
        Mehta et al. (2021). Modulated periodic activations for generalizable local
        functional representations. ICCV.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pyrox_ppl.nn import SIREN, ConditionedINR, FiLM
        >>> inner_key, key = jax.random.split(jax.random.key(0))
        >>> inner = SIREN.init(2, 32, 1, depth=4, key=inner_key)
        >>> film = {"conditioner_cls": FiLM, "cond_dim": 3, "key": key}
        >>> field = ConditionedINR.init(inner, **film)
        >>> x, z = jnp.ones((7, 5, 2)), jnp.ones((7, 1, 3))  # 7 contexts, 5 points each
        >>> field(x, z).shape
        (7, 5, 1)
        >>> bool(jnp.allclose(field(x, z), inner(x)))  # FiLM starts as the identity
        True
    """

    inner: Any
    conditioners: tuple[AbstractConditioner, ...]
    in_features: int = eqx.field(static=True)
    cond_dim: int = eqx.field(static=True)
    mode: Literal["feature", "preactivation", "input"] = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        inner: Callable,
        *,
        conditioner_cls: type[AbstractConditioner],
        cond_dim: int,
        key: PRNGKeyArray,
        mode: Literal["feature", "preactivation", "input"] = "feature",
        in_features: int | None = None,
        **conditioner_kwargs: Any,
    ) -> Self:
        """Put new conditioners around a network.

        Args:
            inner: The network. The attributes ``in_features`` and ``out_features`` (or
                ``in_size``) of its layers, or in input mode its own, give the widths.
            conditioner_cls: The class of the conditioners; its ``init`` gets the
                layer's width for each of its ``widths``.
            cond_dim: K, the width of the context ``z``.
            key: A JAX PRNG key.
            mode: ``"feature"``, ``"preactivation"`` or ``"input"``.
            in_features: The width of ``x``, for a callable without that attribute.
            **conditioner_kwargs: Further arguments of ``conditioner_cls.init``.

        Raises:
            ValueError: If the mode or a width is unknown; except in input mode, if the
                network has no ``layers``, or if its own call does more than apply them
                one after another (a residual connection, for example); in preactivation
                mode, if it is not known what the activation of a layer takes.
            TypeError: If `inner` is not callable, or `conditioner_cls` is not a
                subclass of :class:`AbstractConditioner`.
        """
        check_size(cond_dim=cond_dim)
        if not callable(inner):
            raise TypeError(f"inner must be a callable network, got {inner!r}.")
        if not (
            isinstance(conditioner_cls, type)
            and issubclass(conditioner_cls, AbstractConditioner)
        ):
            raise TypeError(
                "conditioner_cls must be a subclass of AbstractConditioner, got "
                f"{conditioner_cls!r}."
            )
        make = getattr(conditioner_cls, "init", None)
        if make is None:
            raise TypeError(
                f"{conditioner_cls.__name__} needs a classmethod `init` that takes "
                f"{', '.join(conditioner_cls.widths)}, cond_dim and key."
            )
        if in_features is None:
            in_features = _in_features(inner)
        check_size(in_features=in_features)
        if mode == "input":
            widths = [in_features]
        elif mode in ("feature", "preactivation"):
            layers = get_layers(inner, mode)
            if mode == "preactivation":
                check_activations(inner)
            widths = [_width(layer, "out_features") for layer in layers[:-1]]
            check_layers(inner, in_features, mode)
        else:
            raise ValueError(
                f"mode must be 'feature', 'preactivation' or 'input', got {mode!r}."
            )
        conditioners = tuple(
            make(
                **dict.fromkeys(conditioner_cls.widths, width),
                cond_dim=cond_dim,
                key=layer_key,
                **conditioner_kwargs,
            )
            for width, layer_key in zip(
                widths, jax.random.split(key, len(widths)), strict=True
            )
        )
        return cls(inner, conditioners, in_features, cond_dim, mode)

    def forward(self, x: Any, z: Any) -> jax.Array:
        """Apply the inner network with its conditioners."""
        x = check_width(self, "x", x, "in_features", self.in_features)
        z = check_width(self, "z", z, "cond_dim", self.cond_dim)
        check_batch(self, x, z, "x")
        if self.mode == "input":
            return map_rows(self.inner, self.conditioners[0](x, z))
        return apply_layers(
            self.inner, x, self.mode, lambda i, h: self.conditioners[i](h, z)
        )


def _in_features(network: Any) -> int:
    """Find the width of the coordinates on the network or on its first layer."""
    width = find_in_features(network)
    if width is None:
        raise ValueError(
            f"ConditionedINR does not know the input width of {network!r}: pass "
            "`in_features`."
        )
    return width


def _width(layer: Any, attribute: str) -> int:
    width = getattr(layer, attribute, None)
    if not isinstance(width, int):
        raise ValueError(
            f"ConditionedINR does not know the width of {type(layer).__name__}: give "
            f"it an integer attribute `{attribute}`. (Merge a layer without widths, "
            "such as a plain function, into the layer before it, or use mode='input'.)"
        )
    return width
