"""Prediction: what is kept of the draws of a prediction."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np

from pyrox_ppl.prediction._uncertainty import Uncertainty


class SummaryOptions(NamedTuple):
    """How to summarise draws.

    Attributes:
        quantiles: Probabilities of the quantiles.
        batch_size: How many points or values to hold for all draws at a time.
        progress_bar: Whether to show one.
        uncertainty: Whether to split the uncertainty of a model's sites.
    """

    quantiles: tuple[float, ...]
    batch_size: int | None
    progress_bar: bool
    uncertainty: bool = False


class Prediction(NamedTuple):
    """A summary of draws of a prediction, point by point.

    Attributes:
        mean: The mean over the draws.
        std: The standard deviation over the draws (divided by their number).
        quantiles: Probability -> quantile over the draws, interpolated linearly as
            ``numpy.quantile`` does.
        uncertainty: The uncertainty of a model's site in two parts, if asked for.
        has_noise: Whether the draws are values of a sample site, noise included; the
            class probabilities of a site have none.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        >>> draws = {"linear.bias": jnp.arange(5.0)[:, None]}
        >>> prediction = px.predict(linear, draws, jnp.zeros((20, 1)))
        >>> prediction.mean.shape, sorted(prediction.quantiles)
        ((20, 1), [0.05, 0.5, 0.95])
    """

    mean: np.ndarray
    std: np.ndarray
    quantiles: dict[float, np.ndarray]
    uncertainty: Uncertainty | None = None
    has_noise: bool = False

    @classmethod
    def empty(
        cls, shape: tuple[int, ...], dtype: Any, quantiles: Sequence[float]
    ) -> Self:
        """Make arrays to be filled block by block."""
        dtype = widened(dtype)
        if np.issubdtype(dtype, np.complexfloating) and quantiles:
            raise ValueError(
                "complex values have no order, hence no quantiles: give quantiles=()."
            )
        # An integer dtype becomes float64 where float32 would round its values.
        mean = (
            dtype if np.issubdtype(dtype, np.inexact) else np.result_type(dtype, "f4")
        )
        kind = np.abs(np.empty(0, mean)).dtype
        return cls(
            np.empty(shape, mean),
            np.empty(shape, kind),
            {q: np.empty(shape, kind) for q in quantiles},
        )

    def fill(self, where: Any, draws: np.ndarray) -> None:
        """Summarise all draws of some leading entries, the draws along axis 0."""
        kind = np.float32 if draws.dtype == bool else widened(draws.dtype)
        draws = draws.astype(kind, copy=False)  # NumPy has no quantiles of booleans
        double = np.result_type(draws.dtype, np.float64)
        # A value that is not finite shows in the result; NumPy need not warn as well.
        with np.errstate(invalid="ignore"):
            self.mean[where] = draws.mean(0, dtype=double)
            self.std[where] = np.abs(draws.std(0, dtype=double))
        if self.quantiles:
            with np.errstate(invalid="ignore"):
                values = np.quantile(draws, list(self.quantiles), axis=0)
            for quantile, value in zip(self.quantiles.values(), values, strict=True):
                quantile[where] = value


def widened(dtype: Any) -> np.dtype:
    """Float32 for bfloat16 and float16, which NumPy, netCDF and ArviZ handle poorly."""
    dtype = np.dtype(dtype)
    is_narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    return np.dtype(np.float32) if is_narrow else dtype
