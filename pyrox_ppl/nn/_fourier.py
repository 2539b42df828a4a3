"""RBFFourierFeatures and RandomKitchenSinks: a kernel as a finite sum of waves."""

import math
from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pyrox_ppl._bind import AbstractModule
from pyrox_ppl.nn._check import check_positive, check_size, check_width
from pyrox_ppl.nn._linear import PHASE, linear
from pyrox_ppl.nn._rows import find_in_features, map_rows
from pyrox_ppl.nn._sine import cos, sin


def waves(phase: jax.Array) -> jax.Array:
    r"""Map n phases on the last axis to ``sqrt(1/n) [cos(phase), sin(phase)]``."""
    # cos a cos b + sin a sin b = cos(a - b), so the inner product of two rows is the
    # mean over n of cos(difference): the Monte Carlo estimate of a stationary kernel.
    both = jnp.concatenate([cos(phase), sin(phase)], axis=-1)
    return both / math.sqrt(phase.shape[-1])


class RBFFourierFeatures(AbstractModule):
    r"""Random Fourier features of the RBF kernel, with its lengthscale.

    .. math:: \phi(x) = \sqrt{1/n}\,[\cos(W^\top x / \ell),\ \sin(W^\top x / \ell)]

    With :math:`W_{ij} \sim N(0, 1)` the inner product :math:`\phi(x)^\top\phi(x')`
    converges to :math:`\exp(-\lVert x - x' \rVert^2 / 2\ell^2)` as n grows, with an
    error of about :math:`n^{-1/2}`. The module stores the logarithm of the lengthscale,
    so every value of the parameter is valid.

    **Shapes**: ``x`` ``(*batch, in_features)``; the result is
    ``(*batch, 2 * n_features)``.

    **Sites** under a handler: ``rbf_fourier_features.frequencies`` of shape
    ``(in_features, n_features)`` and ``rbf_fourier_features.log_lengthscale``, a
    scalar. A Normal prior on the latter is a LogNormal prior on the lengthscale.

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
        """Compute the features of each row; `key` is accepted and ignored."""
        x = check_width(self, "x", x, "in_features", self.in_features)
        # Divide the few frequencies by the lengthscale, not the rows of x.
        frequencies = self.frequencies * jnp.exp(-self.log_lengthscale)
        return waves(jnp.matmul(x, frequencies, precision=PHASE))


class RandomKitchenSinks(AbstractModule):
    r"""A linear model of random features, :math:`f(x) = \phi(x)\,\beta + b`.

    With a prior on the readout alone it approximates, with n frequencies, a Gaussian
    process with the features' kernel. With priors on the frequencies and the
    lengthscale as well it is the sparse-spectrum Gaussian process (SSGP).

    **Shapes**: ``x`` ``(*batch, in_features)``; the result is
    ``(*batch, out_features)``.

    **Sites** under a handler: ``random_kitchen_sinks.rff.frequencies`` and
    ``.log_lengthscale``, ``random_kitchen_sinks.readout.weight`` of shape
    ``(out_features, 2 * n_features)`` and ``random_kitchen_sinks.readout.bias``. The
    module holds no generator, so a handler selects them all by default.

    Raises:
        ValueError: If the width of ``x`` is not that of the features' input.

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
        ...     "*.log_lengthscale": dist.Normal(0.0, 0.5),
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
            rff: The features: an :class:`RBFFourierFeatures`, or any module whose
                integer ``out_features`` is their number.
            out_features: The width of the result.
            key: A JAX PRNG key.

        Raises:
            ValueError: If `out_features` is not positive.
            TypeError: If `rff` is not callable or has no integer ``out_features``.
        """
        check_size(out_features=out_features)
        return cls(rff, make_readout("rff", rff, out_features, key))

    @property
    def in_features(self) -> int:
        """The width of ``x``, which the features define."""
        return self.rff.in_features

    def forward(self, x: Any, *, key: PRNGKeyArray | None = None) -> jax.Array:
        """Compute ``phi(x) beta + b``; `key` is accepted and ignored."""
        x = check_width(self, "x", x, "in_features", find_in_features(self.rff))
        features = check_width(
            self,
            "the output of rff",
            map_rows(self.rff, x),
            "out_features",
            self.readout.weight.shape[-1],
        )
        return linear(self.readout.weight, self.readout.bias, features)


def make_readout(
    name: str, features: Any, out_features: int, key: PRNGKeyArray
) -> eqx.nn.Linear:
    """Make a linear layer on features, which say how many they are."""
    width = getattr(features, "out_features", None)
    if not callable(features) or not isinstance(width, int):
        raise TypeError(
            f"{name} must be a callable with an integer `out_features`, the number of "
            f"its features, got {features!r}."
        )
    return eqx.nn.Linear(width, out_features, key=key)
