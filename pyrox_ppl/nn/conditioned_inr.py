"""ConditionedINR: a coordinate network, conditioned at its layers or its input."""

from collections.abc import Callable
from typing import Any, Literal, Self

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from pyrox_ppl._bind import AbstractModule
from pyrox_ppl.nn._check import check_batch, check_size, check_width
from pyrox_ppl.nn._rows import each_row, told_in_features
from pyrox_ppl.nn.conditioner import AbstractConditioner


class ConditionedINR(AbstractModule):
    r"""A neural field :math:`f(x; z)`: a network of coordinates, and its conditioners.

    ``mode="feature"``: a conditioner after each layer but the readout,
    :math:`h_l = c_l(s_l(h_{l-1}), z)`, for any network with ``layers`` (a
    :class:`SIREN`, an ``eqx.nn.MLP``, your own). ``mode="input"``: one conditioner on
    the coordinates, :math:`f(c(x, z))`, for any callable of one point. The inner
    network is *backbone*: handlers leave it the constant it is unless they are told
    otherwise.

    **Shapes**: ``x`` ``(*batch, in_features)``, ``z`` ``(K,)`` or ``(*batch, K)`` where
    axes of size 1 broadcast; the result is ``(*batch, out_features)``.

    **Sites** under a handler: those of the conditioners, under
    ``conditioned_inr.conditioners.<l>``; if selected, those of the inner network under
    ``conditioned_inr.inner``.

    Raises:
        ValueError: If ``x`` or ``z`` has a wrong width, or their batch axes do not
            broadcast.

    References:
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
    mode: Literal["feature", "input"] = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        inner: Callable,
        *,
        conditioner_cls: type[AbstractConditioner],
        cond_dim: int,
        key: PRNGKeyArray,
        mode: Literal["feature", "input"] = "feature",
        in_features: int | None = None,
        **conditioner_kwargs: Any,
    ) -> Self:
        """Put new conditioners around a network.

        Args:
            inner: The network. Its layers (or itself, in input mode) tell their widths
                by ``in_features`` and ``out_features`` (or ``in_size``).
            conditioner_cls: The class of the conditioners; its ``init`` is given the
                layer's width for each of its ``widths``.
            cond_dim: K, the width of the context ``z``.
            key: A JAX PRNG key.
            mode: ``"feature"`` or ``"input"``.
            in_features: The width of ``x``, for a callable that does not tell it.
            **conditioner_kwargs: Further arguments of ``conditioner_cls.init``.

        Raises:
            ValueError: If the mode is unknown, or the network has no ``layers`` in
                feature mode, or a width cannot be told.
            TypeError: If `inner` is not callable or `conditioner_cls` no conditioner.
        """
        check_size(cond_dim=cond_dim)
        if not callable(inner):
            raise TypeError(f"inner must be a network to call, got {inner!r}.")
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
        if mode == "feature":
            widths = [_width(layer, "out_features") for layer in _layers(inner)[:-1]]
        elif mode == "input":
            widths = [in_features]
        else:
            raise ValueError(f"mode must be 'feature' or 'input', got {mode!r}.")
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
        """The inner network with the conditioners in between."""
        x = check_width("x", x, "in_features", self.in_features)
        z = check_width("z", z, "cond_dim", self.cond_dim)
        check_batch(x, z, "x")
        if self.mode == "input":
            return each_row(self.inner, self.conditioners[0](x, z))
        *hidden, readout = _layers(self.inner)
        h = x
        for i, (layer, conditioner) in enumerate(
            zip(hidden, self.conditioners, strict=True)
        ):
            h = conditioner(_activate(self.inner, i, _apply_hidden(layer, h)), z)
        return _read_out(self.inner, readout, h)


def _apply_hidden(layer: Any, h: jax.Array) -> jax.Array:
    """Apply a layer that makes one vector of a vector, else raise."""
    out = each_row(layer, h)
    if out.shape[:-1] != h.shape[:-1]:
        raise ValueError(
            f"a layer of inner, {type(layer).__name__}, maps a vector of shape "
            f"{h.shape[-1:]} to shape {out.shape[h.ndim - 1 :]}, and expected is one "
            "vector. Layers stacked into one (as by eqx.nn.MLP(..., scan=True)) cannot "
            "be conditioned one by one: unstack them, or use mode='input'."
        )
    return out


def _activate(network: Any, index: int, h: jax.Array) -> jax.Array:
    """Apply the activation after a hidden layer, if the network has one."""
    activation = getattr(network, "activation", None)
    if activation is None:
        return h
    if isinstance(network, eqx.nn.MLP):
        arrays, functions = eqx.partition(activation, eqx.is_array)
        of_layer = jax.tree.map(lambda leaf: leaf[index], arrays)
        activation = _each_neuron(eqx.combine(of_layer, functions))
    return each_row(activation, h)


def _read_out(network: Any, readout: Any, h: jax.Array) -> jax.Array:
    """Apply the last layer, and the activation after it, if the network has one."""
    final = getattr(network, "final_activation", None)
    if final is None:
        return each_row(readout, h)
    if isinstance(network, eqx.nn.MLP) and network.out_size != "scalar":
        final = _each_neuron(final)
    return each_row(lambda row: final(readout(row)), h)


def _each_neuron(activation: Any) -> Callable[[jax.Array], jax.Array]:
    """``eqx.nn.MLP`` keeps an activation's parameters apart for every neuron."""
    each = eqx.filter_vmap(lambda neuron, value: neuron(value))
    return lambda row: each(activation, row)


def _layers(network: Any) -> tuple[Any, ...]:
    layers = getattr(network, "layers", None)
    if not isinstance(layers, tuple | list) or len(layers) < 2:
        raise ValueError(
            f"mode='feature' needs a network with two or more `layers`, the last one "
            f"the readout, and {type(network).__name__} has {layers!r}. Else use "
            "mode='input'."
        )
    return tuple(layers)


def _in_features(network: Any) -> int:
    """The width of the coordinates, as the network or its first layer tells it."""
    width = told_in_features(network)
    if width is None:
        raise ValueError(
            f"ConditionedINR cannot tell the width of the input of {network!r}: give "
            "`in_features`."
        )
    return width


def _width(layer: Any, attribute: str) -> int:
    width = getattr(layer, attribute, None)
    if not isinstance(width, int):
        raise ValueError(
            f"ConditionedINR cannot tell the width of {type(layer).__name__}: give "
            f"it an integer attribute `{attribute}`."
        )
    return width
