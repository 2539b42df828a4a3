"""RBFFourierFeatures and RandomKitchenSinks: a kernel as finitely many waves."""

import math
from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pyrox_ppl._bind import AbstractModule
from pyrox_ppl.nn._check import check_positive, check_size, check_width
from pyrox_ppl.nn._linear import linear
from pyrox_ppl.nn._rows import each_row, told_in_features
from pyrox_ppl.nn._sine import cos, sin


def waves(phase: jax.Array) -> jax.Array:
    r"""``sqrt(1/n) [cos(phase), sin(phase)]`` on the last axis, of n phases."""
    both = jnp.concatenate([cos(phase), sin(phase)], axis=-1)
    return both / math.sqrt(phase.shape[-1])


class RBFFourierFeatures(AbstractModule):
    r"""Random Fourier features of the RBF kernel, with its lengthscale.

    .. math:: \phi(x) = \sqrt{1/n}\,[\cos(W^\top x / \ell),\ \sin(W^\top x / \ell)]

    With :math:`W_{ij} \sim N(0, 1)` the inner product :math:`\phi(x)^\top\phi(x')`
    converges to :math:`\exp(-\lVert x - x' \rVert^2 / 2\ell^2)` as n grows, with an
    error of about :math:`n^{-1/2}`. The lengthscale is kept as its logarithm, so that
    every value of the parameter is a lengthscale.

    **Shapes**: ``x`` ``(*batch, in_features)``; the result is
    ``(*batch, 2 * n_features)``.

    **Sites** under a handler: ``rbf_fourier_features.frequencies`` of shape
    ``(in_features, n_features)`` and ``rbf_fourier_features.log_lengthscale``, a
    scalar: a Normal on it is a LogNormal on the lengthscale.

    Raises:
        ValueError: If ``x`` is not `in_features` wide.

    References:
        Rahimi, Recht (2007). Random features for large-scale kernel machines. NeurIPS.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pyrox_ppl.nn import RBFFourierFeatures
        >>> phi = RBFFourierFeatures.init(1, 5000, key=jax.random.key(0))
        >>> x = jnp.array([[0.0], [1.0]])
        >>> [round(float(k), 1) for k in phi(x) @ phi(x[0])]  # exp(-1/2) = 0.607
        [1.0, 0.6]
    """

    frequencies: jax.Array
    log_lengthscale: jax.Array
    in_features: int = eqx.field(static=True)
    n_features: int = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        in_features: int,
        n_features: int,
        *,
        key: PRNGKeyArray,
        lengthscale: float = 1.0,
    ) -> Self:
        r"""Draw the frequencies from the standard normal.

        Args:
            in_features: The width of ``x``.
            n_features: n, the number of frequencies; there are 2n features.
            key: A JAX PRNG key.
            lengthscale: :math:`\ell`, in units of ``x``.

        Raises:
            ValueError: If a size or the lengthscale is not positive.
        """
        check_size(in_features=in_features, n_features=n_features)
        check_positive(lengthscale=lengthscale)
        frequencies = jax.random.normal(key, (in_features, n_features))
        return cls(
            frequencies=frequencies,
            log_lengthscale=jnp.full((), math.log(lengthscale), frequencies.dtype),
            in_features=in_features,
            n_features=n_features,
        )

    @property
    def out_features(self) -> int:
        """The number of features: a cosine and a sine of each frequency."""
        return 2 * self.n_features

    def forward(self, x: Any, *, key: PRNGKeyArray | None = None) -> jax.Array:
        """The features of each row; `key` is ignored, as Equinox's layers take it."""
        x = check_width(self, "x", x, "in_features", self.in_features)
        return waves(x @ (self.frequencies * jnp.exp(-self.log_lengthscale)))


class RandomKitchenSinks(AbstractModule):
    r"""A linear model of random features, :math:`f(x) = \phi(x)\,\beta + b`.

    With a prior on the readout alone it is a Gaussian process of the features' kernel,
    to the accuracy of n frequencies; with a prior on the frequencies and the
    lengthscale too it is the sparse-spectrum Gaussian process (SSGP).

    **Shapes**: ``x`` ``(*batch, in_features)``; the result is
    ``(*batch, out_features)``.

    **Sites** under a handler, which takes all of them, for it holds no generator:
    ``random_kitchen_sinks.rff.frequencies`` and ``.log_lengthscale``,
    ``random_kitchen_sinks.readout.weight`` of shape ``(out_features, 2 * n_features)``
    and ``random_kitchen_sinks.readout.bias``.

    Raises:
        ValueError: If ``x`` has a width that the features do not take.

    References:
        Rahimi, Recht (2008). Weighted sums of random kitchen sinks. NeurIPS.
        Lázaro-Gredilla et al. (2010). Sparse spectrum Gaussian process regression.
        JMLR.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> from pyrox_ppl.nn import RandomKitchenSinks, RBFFourierFeatures
        >>> rff_key, key = jax.random.split(jax.random.key(0))
        >>> rff = RBFFourierFeatures.init(1, 20, key=rff_key)
        >>> net = RandomKitchenSinks.init(rff, 1, key=key)
        >>> ssgp = {
        ...     "*.frequencies": dist.Normal(0.0, 1.0),
        ...     "*.log_lengthscale": dist.Normal(0.0, 0.5),  # the lengthscale LogNormal
        ...     "*.readout.*": dist.Normal(0.0, 1.0),
        ... }
        >>> def model(x, y=None):
        ...     with px.bayesianize(prior=ssgp):
        ...         f = net(x)[..., 0]
        ...     with numpyro.plate("row", x.shape[0]):
        ...         numpyro.sample("y", dist.Normal(f, 0.1), obs=y)
        >>> prior = numpyro.infer.Predictive(model, num_samples=3)
        >>> draws = prior(key, jnp.ones((8, 1)))
        >>> draws["random_kitchen_sinks.rff.frequencies"].shape
        (3, 1, 20)
    """

    rff: Any
    readout: eqx.nn.Linear

    @classmethod
    def init(cls, rff: Callable, out_features: int, *, key: PRNGKeyArray) -> Self:
        """Draw a readout of the features as ``eqx.nn.Linear`` does.

        Args:
            rff: The features: an :class:`RBFFourierFeatures`, or any module with an
                integer ``out_features``, their number.
            out_features: The width of the result.
            key: A JAX PRNG key.

        Raises:
            ValueError: If `out_features` is not positive.
            TypeError: If `rff` is not callable or does not tell how many features it
                makes.
        """
        check_size(out_features=out_features)
        return cls(rff, readout_of("rff", rff, out_features, key))

    @property
    def in_features(self) -> int:
        """The width of ``x``, as the features tell it."""
        return self.rff.in_features

    def forward(self, x: Any, *, key: PRNGKeyArray | None = None) -> jax.Array:
        """``phi(x) beta + b``; `key` is ignored, as Equinox's networks take it."""
        x = check_width(self, "x", x, "in_features", told_in_features(self.rff))
        features = check_width(
            self,
            "what rff makes",
            each_row(self.rff, x),
            "out_features",
            self.readout.weight.shape[-1],
        )
        return linear(self.readout.weight, self.readout.bias, features)


def readout_of(
    name: str, features: Any, out_features: int, key: PRNGKeyArray
) -> eqx.nn.Linear:
    """A linear layer as wide as the features say that they are."""
    width = getattr(features, "out_features", None)
    if not callable(features) or not isinstance(width, int):
        raise TypeError(
            f"{name} must be a module of features with an integer `out_features`, "
            f"their number, got {features!r}."
        )
    return eqx.nn.Linear(width, out_features, key=key)
