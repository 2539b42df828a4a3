"""HyperFourierFeatures and ConditionedRFFNet: Fourier features made by the context."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import PRNGKeyArray

from pyrox_ppl._bind import AbstractModule
from pyrox_ppl.nn._check import check_batch, check_size, check_width
from pyrox_ppl.nn._fourier import readout_of, waves
from pyrox_ppl.nn._linear import align, linear
from pyrox_ppl.nn._rows import check_parameter_net, each_row, told_in_features


class HyperFourierFeatures(AbstractModule):
    r"""Fourier features whose frequencies, phases and lengthscale the context makes.

    .. math::

        \phi(x; z) = \sqrt{1/n}\,[\cos(W(z)^\top x / \ell(z) + b(z)),\
        \sin(W(z)^\top x / \ell(z) + b(z))]

    One network makes all three, :math:`(\mathrm{vec}\,W, b, \log\ell) = g(z)`:
    :math:`W` of shape ``(in_features, n)`` row by row, :math:`b` of length n, and the
    logarithm of the lengthscale, which is positive by that. The network runs once for
    each context: a single z once, z of shape (B, 1, K) B times, however many points
    they meet. Every parameter is the network's.

    **Shapes**: ``x`` ``(*batch, in_features)``, ``z`` ``(K,)`` or ``(*batch, K)`` where
    axes of size 1 broadcast; the result is ``(*batch, 2 * n_features)``.

    **Sites** under a handler: those of the network, under
    ``hyper_fourier_features.parameter_net``. They make the features: *generators*.

    Raises:
        ValueError: If ``x`` or ``z`` has a wrong width, or their batch axes do not
            broadcast; at the first call, if `parameter_net` does not make
            ``in_features * n + n + 1`` numbers of a context.

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
        """Make features of a network; there is nothing to draw, and it is not called.

        Args:
            parameter_net: A callable of one context ``(cond_dim,)`` that returns
                ``in_features * n_features + n_features + 1`` numbers, for example an
                ``eqx.nn.MLP``. A module of this package takes all contexts at once.
            in_features: The width of ``x``.
            n_features: n, the number of frequencies; there are 2n features.
            cond_dim: K, the width of the context ``z``, and so of what `parameter_net`
                takes. (:class:`HyperSIREN` has a latent in between, whose width its
                `cond_dim` is.)

        Raises:
            ValueError: If a size is not positive, or `parameter_net` tells by
                ``in_size`` or ``in_features`` that it takes another width.
            TypeError: If `parameter_net` is not callable.
        """
        check_size(in_features=in_features, n_features=n_features, cond_dim=cond_dim)
        check_parameter_net(parameter_net)
        width = told_in_features(parameter_net)
        if width not in (None, cond_dim):
            raise ValueError(
                f"parameter_net takes {width} inputs, but cond_dim={cond_dim}: it is "
                "called with one context of shape (cond_dim,)."
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
        """The features of each row, of the frequencies that its context makes."""
        x = check_width(self, "x", x, "in_features", self.in_features)
        z = check_width(self, "z", z, "cond_dim", self.cond_dim)
        check_batch(self, x, z, "x")
        frequencies, shift, log_lengthscale = self._generate(z)
        ndim = max(x.ndim, z.ndim)
        scaled = align(x, ndim) * align(jnp.exp(-log_lengthscale), ndim)
        # The contexts' axes of size 1 stay so: `einsum` makes one matrix product of
        # all the points that share a context.
        phase = jnp.einsum("...i,...in->...n", scaled, frequencies)
        return waves(phase + align(shift, ndim))

    def _generate(self, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """W (*batch, in, n), b (*batch, n) and the log-lengthscale (*batch, 1)."""
        n_in, n = self.in_features, self.n_features
        size = n_in * n + n + 1
        flat = jnp.asarray(each_row(self.parameter_net, z))
        if flat.shape != (*z.shape[:-1], size):
            raise ValueError(
                f"parameter_net makes an array of shape {flat.shape[z.ndim - 1 :]} of "
                f"one context, but in_features={n_in} and n_features={n} need "
                f"({size},): {n_in} * {n} frequencies, {n} phases and one "
                "log-lengthscale."
            )
        frequencies = rearrange(flat[..., : n_in * n], "... (i n) -> ... i n", n=n)
        return frequencies, flat[..., n_in * n : -1], flat[..., -1:]


class ConditionedRFFNet(AbstractModule):
    r"""A linear readout of Fourier features of the context (Hyper-RFF).

    .. math:: f(x; z) = \phi(x; z)\,\beta + b

    The context moves the basis; the readout, one for all contexts, is *backbone*:
    handlers leave it the constant it is unless they are told otherwise.

    **Shapes**: ``x`` ``(*batch, in_features)``, ``z`` ``(K,)`` or ``(*batch, K)`` where
    axes of size 1 broadcast; the result is ``(*batch, out_features)``.

    **Sites** under a handler: those of the features' network, under
    ``conditioned_rff_net.feat.parameter_net``; if selected,
    ``conditioned_rff_net.readout.weight`` of shape ``(out_features, 2 * n_features)``
    and ``conditioned_rff_net.readout.bias``.

    Raises:
        ValueError: If ``x`` or ``z`` has a width that the features do not take, or
            their batch axes do not broadcast.

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
                ``(x, z)`` with an integer ``out_features``, their number.
            out_features: The width of the result.
            key: A JAX PRNG key.

        Raises:
            ValueError: If `out_features` is not positive.
            TypeError: If `feat` is not callable or does not tell how many features it
                makes.
        """
        check_size(out_features=out_features)
        return cls(feat, readout_of("feat", feat, out_features, key))

    def forward(self, x: Any, z: Any) -> jax.Array:
        """``phi(x; z) beta + b``."""
        features = check_width(
            self,
            "what feat makes",
            self.feat(x, z),
            "out_features",
            self.readout.weight.shape[-1],
        )
        return linear(self.readout.weight, self.readout.bias, features)
