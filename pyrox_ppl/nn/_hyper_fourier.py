"""HyperFourierFeatures, ConditionedRFFNet: the context generates Fourier features."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import PRNGKeyArray

from pyrox_ppl._bind import AbstractModule
from pyrox_ppl.nn._check import check_batch, check_size, check_width
from pyrox_ppl.nn._fourier import make_readout, waves
from pyrox_ppl.nn._linear import PHASE, align, linear
from pyrox_ppl.nn._rows import check_parameter_net, find_in_features, map_rows


class HyperFourierFeatures(AbstractModule):
    r"""Fourier features with frequencies, phases and lengthscale from the context.

    .. math::

        \phi(x; z) = \sqrt{1/n}\,[\cos(W(z)^\top x / \ell(z) + b(z)),\
        \sin(W(z)^\top x / \ell(z) + b(z))]

    One network makes all three, :math:`(\mathrm{vec}\,W, b, \log\ell) = g(z)`:
    :math:`W` of shape ``(in_features, n)`` row by row, :math:`b` of length n, and the
    logarithm of the lengthscale, which keeps the lengthscale positive. The network runs
    once per context, however many points share it: once for a single z, B times for z
    of shape (B, 1, K). The module has no parameters but the network's.

    **Shapes**: ``x`` ``(*batch, in_features)``, ``z`` ``(K,)`` or ``(*batch, K)`` where
    axes of size 1 broadcast; the result is ``(*batch, 2 * n_features)``.

    **Sites** under a handler: those of the network, under
    ``hyper_fourier_features.parameter_net``. They are *generators*, for they make the
    features.

    Raises:
        ValueError: If ``x`` or ``z`` has a wrong width, or their batch axes do not
            broadcast; at the first call, if `parameter_net` does not return
            ``in_features * n + n + 1`` numbers for a context.

    References:
        Rahimi, Recht (2007). Random features for large-scale kernel machines. NeurIPS.
        Ha, Dai, Le (2017). HyperNetworks. ICLR.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> from pyrox_ppl.nn import HyperFourierFeatures
        >>> net = eqx.nn.MLP(3, 2 * 16 + 16 + 1, 32, 1, key=jax.random.key(0))
        >>> sizes = {"in_features": 2, "n_features": 16, "cond_dim": 3}
        >>> phi = HyperFourierFeatures.init(parameter_net=net, **sizes)
        >>> x, z = jnp.ones((7, 5, 2)), jnp.ones((7, 1, 3))  # 7 contexts, 5 points each
        >>> phi(x, z).shape
        (7, 5, 32)
    """

    parameter_role: ClassVar[str] = "generator"

    parameter_net: Any
    in_features: int = eqx.field(static=True)
    n_features: int = eqx.field(static=True)
    cond_dim: int = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        *,
        parameter_net: Callable,
        in_features: int,
        n_features: int,
        cond_dim: int,
    ) -> Self:
        """Wrap a network that generates the features; nothing is drawn or called yet.

        Args:
            parameter_net: A callable of one context ``(cond_dim,)`` that returns
                ``in_features * n_features + n_features + 1`` numbers, for example an
                ``eqx.nn.MLP``. A module of this package takes all contexts at once.
            in_features: The width of ``x``.
            n_features: n, the number of frequencies; there are 2n features.
            cond_dim: K, the width of the context ``z`` and of the input of
                `parameter_net`. (In :class:`HyperSIREN`, `cond_dim` is the width of the
                latent that `parameter_net` returns.)

        Raises:
            ValueError: If a size is not positive, or the ``in_size`` or ``in_features``
                of `parameter_net` is not `cond_dim`.
            TypeError: If `parameter_net` is not callable.
        """
        check_size(in_features=in_features, n_features=n_features, cond_dim=cond_dim)
        check_parameter_net(parameter_net)
        width = find_in_features(parameter_net)
        if width not in (None, cond_dim):
            raise ValueError(
                f"parameter_net takes {width} inputs, but cond_dim={cond_dim}: it must "
                "take one context of shape (cond_dim,)."
            )
        return cls(
            parameter_net=parameter_net,
            in_features=in_features,
            n_features=n_features,
            cond_dim=cond_dim,
        )

    @property
    def out_features(self) -> int:
        """The number of features: a cosine and a sine of each frequency."""
        return 2 * self.n_features

    def forward(self, x: Any, z: Any) -> jax.Array:
        """Compute the features of each row from the frequencies of its context."""
        x = check_width(self, "x", x, "in_features", self.in_features)
        z = check_width(self, "z", z, "cond_dim", self.cond_dim)
        check_batch(self, x, z, "x")
        frequencies, shift, log_lengthscale = self._generate(z)
        ndim = max(x.ndim, z.ndim)
        scaled = align(x, ndim) * align(jnp.exp(-log_lengthscale), ndim)
        # Axes of size 1 of the contexts are not broadcast here: `einsum` makes one
        # matrix product for all the points that share a context.
        phase = jnp.einsum("...i,...in->...n", scaled, frequencies, precision=PHASE)
        return waves(phase + align(shift, ndim))

    def _generate(self, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return W (*batch, in, n), b (*batch, n), the log-lengthscale (*batch, 1)."""
        n_in, n = self.in_features, self.n_features
        size = n_in * n + n + 1
        flat = jnp.asarray(map_rows(self.parameter_net, z))
        if flat.shape != (*z.shape[:-1], size):
            raise ValueError(
                f"parameter_net returns shape {flat.shape[z.ndim - 1 :]} for one "
                f"context, but in_features={n_in} and n_features={n} need ({size},): "
                f"{n_in} * {n} frequencies, {n} phases and one log-lengthscale."
            )
        frequencies = rearrange(flat[..., : n_in * n], "... (i n) -> ... i n", n=n)
        return frequencies, flat[..., n_in * n : -1], flat[..., -1:]


class ConditionedRFFNet(AbstractModule):
    r"""A linear readout of Fourier features of the context (Hyper-RFF).

    .. math:: f(x; z) = \phi(x; z)\,\beta + b

    The context moves the basis. All contexts share one readout, which is *backbone*:
    handlers leave it constant unless ``where`` selects it.

    **Shapes**: ``x`` ``(*batch, in_features)``, ``z`` ``(K,)`` or ``(*batch, K)`` where
    axes of size 1 broadcast; the result is ``(*batch, out_features)``.

    **Sites** under a handler: those of the features' network, under
    ``conditioned_rff_net.feat.parameter_net``; if selected,
    ``conditioned_rff_net.readout.weight`` of shape ``(out_features, 2 * n_features)``
    and ``conditioned_rff_net.readout.bias``.

    Raises:
        ValueError: If ``x`` or ``z`` has a wrong width, or their batch axes do not
            broadcast.

    References:
        Rahimi, Recht (2008). Weighted sums of random kitchen sinks. NeurIPS.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> from numpyro.handlers import seed, trace
        >>> from pyrox_ppl.nn import ConditionedRFFNet, HyperFourierFeatures
        >>> key, net_key = jax.random.split(jax.random.key(0))
        >>> net = eqx.nn.MLP(3, 2 * 16 + 16 + 1, 32, 1, key=net_key)
        >>> sizes = {"in_features": 2, "n_features": 16, "cond_dim": 3}
        >>> phi = HyperFourierFeatures.init(parameter_net=net, **sizes)
        >>> field = ConditionedRFFNet.init(feat=phi, out_features=1, key=key)
        >>> field(jnp.ones((5, 2)), jnp.ones(3)).shape
        (5, 1)
        >>> readout = px.bayesianize(where=px.is_backbone)
        >>> with seed(rng_seed=0), trace() as sites, readout:
        ...     y = field(jnp.ones((5, 2)), jnp.ones(3))
        >>> list(sites)
        ['conditioned_rff_net.readout.weight', 'conditioned_rff_net.readout.bias']
    """

    feat: Any
    readout: eqx.nn.Linear = eqx.field(metadata={"parameter_role": "backbone"})

    @classmethod
    def init(cls, *, feat: Callable, out_features: int, key: PRNGKeyArray) -> Self:
        """Draw a readout of the features as ``eqx.nn.Linear`` does.

        Args:
            feat: The features: a :class:`HyperFourierFeatures`, or any module of
                ``(x, z)`` whose integer ``out_features`` is their number.
            out_features: The width of the result.
            key: A JAX PRNG key.

        Raises:
            ValueError: If `out_features` is not positive.
            TypeError: If `feat` is not callable or has no integer ``out_features``.
        """
        check_size(out_features=out_features)
        return cls(feat, make_readout("feat", feat, out_features, key))

    def forward(self, x: Any, z: Any) -> jax.Array:
        """Compute ``phi(x; z) beta + b``."""
        features = check_width(
            self,
            "the output of feat",
            self.feat(x, z),
            "out_features",
            self.readout.weight.shape[-1],
        )
        return linear(self.readout.weight, self.readout.bias, features)
