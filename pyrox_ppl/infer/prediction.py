"""Prediction: what is kept of the draws of a prediction."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np


class Prediction(NamedTuple):
    """A summary of draws of a prediction, point by point.

    Attributes:
        mean: The mean over the draws.
        std: The standard deviation over the draws (divided by their number).
        quantiles: Probability -> quantile over the draws, interpolated linearly as
            ``numpy.quantile`` does.
    """

    mean: np.ndarray
    std: np.ndarray
    quantiles: dict[float, np.ndarray]

    @classmethod
    def empty(
        cls, shape: tuple[int, ...], dtype: np.dtype, quantiles: Sequence[float]
    ) -> Self:
        """Arrays to be filled block by block."""
        kind = dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float32)
        return cls(
            np.empty(shape, kind),
            np.empty(shape, kind),
            {q: np.empty(shape, kind) for q in quantiles},
        )

    def fill(self, where: Any, draws: np.ndarray) -> None:
        """Summarise a block: all draws of some leading entries, draws along axis 0."""
        if not np.issubdtype(draws.dtype, np.number) and draws.dtype != bool:
            draws = draws.astype(np.float32)  # bfloat16, which NumPy cannot sort
        self.mean[where] = draws.mean(0, dtype=np.float64)
        self.std[where] = draws.std(0, dtype=np.float64)
        if self.quantiles:
            values = np.quantile(draws, list(self.quantiles), axis=0)
            for quantile, value in zip(self.quantiles.values(), values, strict=True):
                quantile[where] = value
