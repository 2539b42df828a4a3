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

    @classmethod
    def empty(
        cls, shape: tuple[int, ...], dtype: np.dtype, quantiles: Sequence[float]
    ) -> Self:
        """Arrays to be filled block by block."""
        if np.issubdtype(dtype, np.complexfloating) and quantiles:
            raise ValueError(
                "complex values have no order, so no quantiles: give quantiles=()."
            )
        # Integers need double precision to be told apart.
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
        """Summarise a block: all draws of some leading entries, draws along axis 0."""
        if not np.issubdtype(draws.dtype, np.number) and draws.dtype != bool:
            draws = draws.astype(np.float32)  # bfloat16, which NumPy cannot sort
        double = np.result_type(draws.dtype, np.float64)
        # What is not finite shows in the result; NumPy would warn of it besides.
        with np.errstate(invalid="ignore"):
            self.mean[where] = draws.mean(0, dtype=double)
            self.std[where] = np.abs(draws.std(0, dtype=double))
        if self.quantiles:
            with np.errstate(invalid="ignore"):
                values = np.quantile(draws, list(self.quantiles), axis=0)
            for quantile, value in zip(self.quantiles.values(), values, strict=True):
                quantile[where] = value
