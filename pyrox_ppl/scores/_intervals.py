"""Intervals of predictive draws: their width, coverage and score."""

import numpy as np
from numpy.typing import ArrayLike

import pyrox_ppl.scores._check as _check
from pyrox_ppl.scores._row_blocks import row_blocks


def central_interval(
    draws: ArrayLike, *, level: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    r"""The interval between the :math:`(1 \mp` `level` :math:`) / 2` quantiles.

    **Shapes**: draws ``(draws, *rows)``, lower and upper ``(*rows)``.

    Args:
        draws: Predictive draws.
        level: The probability that the interval should have.

    Returns:
        Lower and upper bounds, quantiles interpolated as ``numpy.quantile`` does.

    Raises:
        ValueError: If a draw is NaN or infinite, or if the level is not in (0, 1).

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> lower, upper = px.scores.central_interval(np.arange(101.0)[:, None])
        >>> lower, upper
        (array([5.]), array([95.]))
    """
    _check.check_level(level)
    drawn = _check.real_array("draws", draws)
    if drawn.ndim == 0:
        raise ValueError("draws have the axis of draws first, got a single number.")
    tails = [(1 - level) / 2, (1 + level) / 2]
    bounds = np.empty((2, drawn[0].size))
    for where, block in row_blocks(drawn):
        if not np.isfinite(block).all():
            _check.check_finite("draws", drawn)
        bounds[:, where] = np.quantile(block, tails, axis=0)
    shape = drawn.shape[1:]
    return bounds[0].reshape(shape), bounds[1].reshape(shape)


def coverage(observations: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> np.ndarray:
    """Whether each interval covers its observation; the mean should be the level.

    Bounds belong to the interval. Wide intervals cover more, so read the coverage
    beside the `sharpness`.

    **Shapes**: all ``(*rows)``.

    Args:
        observations: What was observed.
        lower: Lower bounds.
        upper: Upper bounds.

    Returns:
        A boolean for every row.

    Raises:
        ValueError: If shapes differ; if a value is NaN or an observation infinite; if a
            lower bound exceeds its upper bound.

    References:
        Gneiting, Balabdaoui and Raftery, "Probabilistic forecasts, calibration and
        sharpness", JRSS B 2007.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> y = np.array([0.5, 2.0])
        >>> px.scores.coverage(y, np.zeros(2), np.ones(2)).mean()
        np.float64(0.5)
    """
    y, low, high = _interval(observations, lower, upper)
    return np.asarray((low <= y) & (y <= high))


def sharpness(lower: ArrayLike, upper: ArrayLike) -> np.ndarray:
    """The widths of intervals, in units of the outcome; smaller is better.

    Compare widths only among methods whose coverage is right.

    **Shapes**: all ``(*rows)``.

    Args:
        lower: Lower bounds.
        upper: Upper bounds.

    Returns:
        The width of every row's interval.

    Raises:
        ValueError: If shapes differ, a bound is NaN, or a lower bound exceeds its upper
            bound.

    References:
        Gneiting, Balabdaoui and Raftery, "Probabilistic forecasts, calibration and
        sharpness", JRSS B 2007.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> px.scores.sharpness(np.zeros(2), np.array([1.0, 3.0])).mean()
        np.float64(2.0)
    """
    low, high = _bounds(lower, upper)
    return np.asarray(high - low)


def interval_score(
    observations: ArrayLike, lower: ArrayLike, upper: ArrayLike, *, level: float
) -> np.ndarray:
    r"""Score central intervals; smaller is better, in units of the outcome.

    .. math:: (u - l) + \frac2\alpha (l - y)_+ + \frac2\alpha (y - u)_+

    with :math:`\alpha` = 1 - `level`: the width plus a penalty for what the interval
    misses. The true quantiles score best.

    **Shapes**: all ``(*rows)``.

    Args:
        observations: What was observed.
        lower: Lower bounds, quantiles at (1 - level) / 2.
        upper: Upper bounds, quantiles at (1 + level) / 2.
        level: The probability that the intervals should have.

    Returns:
        The score of every row, in double precision.

    Raises:
        ValueError: If shapes differ; if a value is NaN or an observation infinite; if a
            lower bound exceeds its upper bound; if the level is not in (0, 1).

    References:
        Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and
        Estimation", JASA 2007, equation 43.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> y, zero, one = np.array([0.5, 1.5]), np.zeros(2), np.ones(2)
        >>> px.scores.interval_score(y, zero, one, level=0.8).round(6)
        array([1., 6.])
    """
    _check.check_level(level)
    y, low, high = _interval(observations, lower, upper)
    missed = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return np.asarray(high - low + 2 / (1 - level) * missed)


def _interval(
    observations: ArrayLike, lower: ArrayLike, upper: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y = _check.finite_array("observations", observations)
    low, high = _bounds(lower, upper)
    _check.same_shape(observations=y, lower=low, upper=high)
    return y, low, high


def _bounds(lower: ArrayLike, upper: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    low = _check.real_array("lower bounds", lower).astype(np.float64)
    high = _check.real_array("upper bounds", upper).astype(np.float64)
    _check.same_shape(lower=low, upper=high)
    _check.check_bounds(low, high)
    return low, high
