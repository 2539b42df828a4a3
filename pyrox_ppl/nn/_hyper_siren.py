"""HyperSIREN: a SIREN whose layers, or whose readout, the context generates."""

import math
from collections.abc import Callable
from typing import Any, Literal, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from pyrox_ppl._bind import AbstractModule, stop_reads
from pyrox_ppl.nn._check import check_batch, check_positive, check_size, check_width
from pyrox_ppl.nn._hyper_linear import HyperLinear
from pyrox_ppl.nn._rows import check_parameter_net, find_in_features, map_rows
from pyrox_ppl.nn._sine import sin
from pyrox_ppl.nn._siren import SIREN, SirenDense, half_widths


class HyperSIREN(AbstractModule):
    r"""Neural Implicit Flow: a SIREN of coordinates with weights from the context.

    .. math::

        f(x; z) = W_d(p)\,s_{d-1} \circ \dots \circ s_1(x) + b_d(p), \quad
        s_l(h) = \sin(\omega_l (W_l(p)\,h + b_l(p))), \quad p = p(z)

    A *parameter net* maps the P raw parameters z to a latent vector p of `cond_dim`
    entries. From p, one :class:`HyperLinear` per layer makes the layer's weights,
    :math:`(W_l, b_l) = G_l p + g_l`. The latent is computed once per context, and so
    are the weights if points share the context.

    ``parameterized="last"`` generates the readout alone. The sine layers, the *trunk*,
    have weights of their own, and the field is affine in the latent:

    .. math:: f(x; z) = \varphi_0(x) + \sum_k p_k(z)\,\varphi_k(x).

    The K + 1 functions :math:`\varphi` are linear in the trunk's features: a basis that
    is learned, where POD (the singular value decomposition of all fields at fixed
    points) computes one. The features of a point are computed once for all contexts if
    ``x`` has size 1 along the axes of the contexts.

    At construction :math:`g_l` is a draw of a SIREN's layer, and so is each column of
    :math:`G_l`, times ``init_scale / sqrt(K)`` with K = `cond_dim`. If p has unit
    variance, the pre-activations of every layer have the standard deviation of a
    SIREN's, up to a factor :math:`\sqrt{1 + \mathrm{init\_scale}^2}`, whatever K is.

    If the generated layers have :math:`m = \sum_l (n_l n_{l-1} + n_l)` weights and
    biases, the module has :math:`m K + m` parameters, those of the trunk (none by
    default) and those of the parameter net.

    **Shapes**: ``x`` ``(*batch, in_features)``, ``z`` ``(P,)`` or ``(*batch, P)`` where
    axes of size 1 broadcast; the result is ``(*batch, out_features)``.

    **Sites** under a handler: ``hyper_siren.hyper_layers.<l>.generator.weight`` and
    ``hyper_siren.hyper_layers.<l>.generator.bias`` for l from 0 to depth - 1; if only
    the readout is generated, for l = 0. The parameter net, which only encodes the
    context, and the trunk are *backbone*; if selected, their sites are under
    ``hyper_siren.parameter_net`` and ``hyper_siren.trunk.<l>``.

    Args:
        in_features: The width of ``x``, coordinates scaled to about [-1, 1].
        hidden_features: The width of every hidden layer.
        out_features: The width of the result.
        depth: The number of layers including the readout; at least 2.
        cond_dim: K, the width of the latent that `parameter_net` returns.
        parameter_net: A callable of the raw parameters of one context, ``(P,)``, that
            returns the latent ``(cond_dim,)``: for example an ``eqx.nn.MLP``, or
            ``lambda z: z`` if z is the latent. A module of this package takes all
            contexts at once. P is the ``in_size`` or ``in_features`` of the net or of
            its first layer. For a callable with neither, the width that it returns is
            checked at the first call.
        key: A JAX PRNG key.
        first_omega: The frequency factor of the first layer: the field's bandwidth, in
            radians per unit of ``x``.
        hidden_omega: The frequency factor of the hidden layers and the readout.
        c: The constant of Theorem 1; 6 gives unit variance.
        init_scale: How much the generated layers vary with the latent, relative to the
            layers themselves.
        parameterized: What the context generates: ``"all"`` layers, or the ``"last"``,
            the readout.

    Raises:
        ValueError: If a size or a factor is not positive, `depth` is below 2,
            `parameterized` is neither of the two, or `parameter_net` does not return a
            vector of `cond_dim` entries; at a call, if ``x`` or ``z`` has a wrong width
            or their batch axes do not broadcast.
        TypeError: If `parameter_net` is not callable.

    References:
        Pan, Brunton, Kutz (2023). Neural implicit flow: a mesh-agnostic dimensionality
        reduction paradigm of spatio-temporal data. JMLR.
        Sitzmann, Martel, Bergman, Lindell, Wetzstein (2020). Implicit neural
        representations with periodic activation functions. NeurIPS. Theorem 1.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> from pyrox_ppl.nn import HyperSIREN
        >>> net_key, key = jax.random.split(jax.random.key(0))
        >>> encode = eqx.nn.MLP(3, 8, 16, 1, key=net_key)  # 3 numbers to a latent of 8
        >>> sizes = {"depth": 4, "cond_dim": 8, "parameter_net": encode}
        >>> field = HyperSIREN(2, 32, 1, **sizes, key=key)
        >>> x, z = jnp.ones((7, 5, 2)), jnp.ones((7, 1, 3))  # 7 contexts, 5 points each
        >>> field(x, z).shape
        (7, 5, 1)
        >>> field = HyperSIREN(2, 32, 1, **sizes, parameterized="last", key=key)
        >>> field(x[:1], z).shape  # the same 5 points for all contexts
        (7, 5, 1)
    """

    parameter_net: Any = eqx.field(metadata={"parameter_role": "backbone"})
    trunk: tuple[SirenDense, ...] = eqx.field(metadata={"parameter_role": "backbone"})
    hyper_layers: tuple[HyperLinear, ...]
    in_features: int = eqx.field(static=True)
    cond_dim: int = eqx.field(static=True)
    first_omega: float = eqx.field(static=True)
    hidden_omega: float = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        depth: int,
        cond_dim: int,
        parameter_net: Callable,
        key: PRNGKeyArray,
        first_omega: float = 30.0,
        hidden_omega: float = 30.0,
        c: float = 6.0,
        init_scale: float = 0.1,
        parameterized: Literal["all", "last"] = "all",
    ) -> None:
        check_size(cond_dim=cond_dim)
        check_positive(init_scale=init_scale)
        if parameterized not in ("all", "last"):
            raise ValueError(
                f"parameterized must be 'all' or 'last', got {parameterized!r}."
            )
        # This takes the shapes and regimes of a SIREN, and its checks, without draws.
        siren = eqx.filter_eval_shape(
            SIREN.init,
            in_features,
            hidden_features,
            out_features,
            depth=depth,
            key=key,
            first_omega=first_omega,
            hidden_omega=hidden_omega,
            c=c,
        )
        check_parameter_net(parameter_net)
        width = find_in_features(parameter_net)
        if width is not None:
            # Without reads, so that a handler around the constructor sees no parameter.
            raw = jax.ShapeDtypeStruct((width,), jnp.zeros(()).dtype)
            net = stop_reads(parameter_net)
            latent = jax.eval_shape(lambda z: jnp.asarray(map_rows(net, z)), raw)
            _check_latent(latent.shape, raw.shape, cond_dim)
        trunk = depth - 1 if parameterized == "last" else 0
        keys = jax.random.split(key, depth)
        self.parameter_net = parameter_net
        self.trunk = tuple(
            _make_layer(layer, c, layer_key)
            for layer, layer_key in zip(siren.layers[:trunk], keys[:trunk], strict=True)
        )
        self.hyper_layers = tuple(
            _make_generator(layer, cond_dim, c, init_scale, layer_key)
            for layer, layer_key in zip(siren.layers[trunk:], keys[trunk:], strict=True)
        )
        self.in_features = in_features
        self.cond_dim = cond_dim
        self.first_omega = first_omega
        self.hidden_omega = hidden_omega

    @classmethod
    def init(cls, *args: Any, **kwargs: Any) -> Self:
        """Call the constructor; the other modules are made by an `init`."""
        return cls(*args, **kwargs)

    def forward(self, x: Any, z: Any) -> jax.Array:
        """Compute the latent of each context, then apply layer after layer."""
        x = check_width(self, "x", x, "in_features", self.in_features)
        width = find_in_features(self.parameter_net)
        z = check_width(self, "z", z, "P", width)
        check_batch(self, x, z, "x")
        latent = jnp.asarray(map_rows(self.parameter_net, z))
        _check_latent(latent.shape, z.shape, self.cond_dim)
        h = x
        for layer in self.trunk:
            h = layer(h)
        *hidden, readout = self.hyper_layers
        # An axis of size 1 in the latent keeps that size, so each layer generates its
        # weights once per context and not once per point.
        for i, layer in enumerate(hidden):
            omega = self.hidden_omega if i else self.first_omega
            h = sin(omega * layer(h, latent))
        return readout(h, latent)


def _check_latent(latent: tuple[int, ...], raw: tuple[int, ...], cond_dim: int) -> None:
    """Raise unless the parameter net returns one latent per row."""
    if latent != (*raw[:-1], cond_dim):
        raise ValueError(
            f"parameter_net maps raw parameters of shape {raw} to shape {latent}, but "
            f"cond_dim={cond_dim}: it must return one latent of shape (cond_dim,) per "
            "row."
        )


def _make_layer(layer: SirenDense, c: float, key: PRNGKeyArray) -> SirenDense:
    """Draw a layer of the shape and regime of another."""
    return SirenDense.init(
        layer.in_features,
        layer.out_features,
        key=key,
        regime=layer.regime,
        omega=layer.omega,
        c=c,
    )


def _make_generator(
    layer: SirenDense, latent: int, c: float, init_scale: float, key: PRNGKeyArray
) -> HyperLinear:
    """Draw a layer of a SIREN as the bias, and one per entry of the latent as columns.

    A generated weight is the sum of these draws, weighted by the latent. If p has unit
    variance, the weight has (1 + init_scale^2) times the variance of a SIREN's, and by
    Theorem 1 so has the pre-activation: a sum over many inputs is normal in the limit,
    whatever the shape of the weights' law.
    """
    n_in, n_out = layer.in_features, layer.out_features
    weight_limit, bias_limit = half_widths(n_in, layer.regime, layer.omega, c)
    # The rows of the generator: the weights of the layer, then its biases.
    rows = np.repeat([weight_limit, bias_limit], [n_out * n_in, n_out])
    columns = np.append(np.full(latent, init_scale / math.sqrt(latent)), 1.0)
    draws = jax.random.uniform(key, (rows.size, columns.size), minval=-1.0)
    draws = draws * jnp.asarray(rows[:, None], draws.dtype)
    draws = draws * jnp.asarray(columns[None], draws.dtype)
    generator = eqx.tree_at(
        lambda linear: (linear.weight, linear.bias),
        eqx.filter_eval_shape(eqx.nn.Linear, latent, rows.size, key=key),
        (draws[:, :latent], draws[:, latent]),
    )
    return HyperLinear(
        generator=generator, target_in=n_in, target_out=n_out, cond_dim=latent
    )
