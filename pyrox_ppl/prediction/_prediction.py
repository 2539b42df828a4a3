"""Prediction: what is kept of the draws of a prediction."""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np

from pyrox_ppl.prediction._uncertainty import Uncertainty

# As many bytes of draws as fit in a core's cache, in double precision as well, are
# summarised at a time.
_BLOCK_BYTES = 2**19
# How many draws are transposed at a time: the rows of so many stay in the cache.
_TILE = 128


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
        draws = draws.reshape(len(draws), -1)
        arrays = [self.mean, self.std, *self.quantiles.values()]
        mean, std, *quantiles = (array[where].reshape(-1) for array in arrays)
        width = max(1, _BLOCK_BYTES // (len(draws) * np.dtype(kind).itemsize))
        double = np.result_type(kind, np.float64)

        def summarise(start: int) -> None:
            part = slice(start, start + width)
            # Each entry's draws side by side: NumPy is several times faster so.
            rows = draws[:, part]
            block = np.empty(rows.shape[::-1], kind)
            for first in range(0, len(rows), _TILE):
                tile = slice(first, first + _TILE)
                block[:, tile] = rows[tile].T
            # A value that is not finite shows in the result; NumPy need not warn too.
            with np.errstate(invalid="ignore"):
                mean[part] = block.mean(1, dtype=double)
                std[part] = np.abs(block.std(1, dtype=double))
                if quantiles:
                    block.sort(axis=1)
                for probability, array in zip(self.quantiles, quantiles, strict=True):
                    array[part] = _sorted_quantile(block, probability)

        starts = range(0, draws.shape[1], width)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            deque(pool.map(summarise, starts), maxlen=0)


def _sorted_quantile(draws: np.ndarray, probability: float) -> np.ndarray:
    """The quantile over the last axis, sorted; NaN where there is one, as in NumPy."""
    index = probability * (draws.shape[1] - 1)
    below = int(index)
    low, high = draws[:, below], draws[:, min(below + 1, draws.shape[1] - 1)]
    weight = index - below
    # From the nearer side, so that the ends are exact, as `numpy.quantile` does.
    step = high - low
    value = low + step * weight if weight < 0.5 else high - step * (1 - weight)
    last = draws[:, -1]  # NaN is sorted to the end
    return np.where(np.isnan(last), last, value)


def widened(dtype: Any) -> np.dtype:
    """Float32 for bfloat16 and float16, which NumPy, netCDF and ArviZ handle poorly."""
    dtype = np.dtype(dtype)
    is_narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    return np.dtype(np.float32) if is_narrow else dtype
