"""crps and energy_score: how far predictive draws are from what was observed."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist

import pyrox_ppl.scores._check as _check
from pyrox_ppl.scores._row_blocks import row_blocks

_PAIRS = 2**17  # distances at a time: they stay in the cache


def crps(
    observations: ArrayLike,
    draws: ArrayLike,
    *,
    fair: bool = True,
    weights: ArrayLike | None = None,
) -> np.ndarray:
    r"""Continuous ranked probability score; smaller is better, in units of the outcome.

    .. math::
        \frac1S \sum_s |\tilde y_s - y|
        - \frac1{2 S (S - 1)} \sum_{s, t} |\tilde y_s - \tilde y_t|

    for S predictive draws :math:`\tilde y_s` of an observation y. This is the fair
    version, the default. It scores the law that the draws come from: its expectation
    does not depend on S, so a 5-member ensemble and 2,000 draws of a chain compare. It
    may be slightly negative. The plain version, ``fair=False``, has :math:`S^2` in
    place of :math:`S (S - 1)` and scores the draws as if they were the whole predictive
    distribution.

    With weights, :math:`w_s` takes the place of 1/S, and the fair version divides the
    second term by :math:`1 - \sum_s w_s^2`. The cost per row is O(S log S). Counts have
    a CRPS, which is their ranked probability score. Class labels have no distances and
    so no CRPS: use `brier_score`.

    **Shapes**: observations ``(*rows)``, draws ``(draws, *rows)``, weights
    ``(draws,)``, result ``(*rows)``.

    Args:
        observations: What was observed.
        draws: Predictive draws of each observation.
        fair: Whether to score the law of the draws rather than the draws themselves.
        weights: Non-negative weights of the draws, normalised here; equal if None.

    Returns:
        The score of every row, in double precision.

    Raises:
        ValueError: If shapes do not match; if a value is NaN or infinite; if the fair
            version has fewer than two draws.

    References:
        Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and
        Estimation", JASA 2007, equation 21. Ferro, "Fair scores for ensemble
        forecasts", QJRMS 2014.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> draws = np.array([[0.0], [1.0], [2.0]])
        >>> px.scores.crps(np.array([1.0]), draws, fair=False).round(3)
        array([0.222])
        >>> px.scores.crps(np.array([1.0]), draws)
        array([0.])
    """
    observed, drawn = _check.observations_and_draws(observations, draws)
    weight = _check.draw_weights(weights, len(drawn))
    scale = _spread_scale(weight, fair)
    y, result = observed.reshape(-1), np.empty(observed.size)
    for where, block in row_blocks(drawn):
        if not np.isfinite(block).all():
            _check.check_finite("draws", drawn)
        # Distances from y: a large common offset would cost digits of the spread.
        x = np.ascontiguousarray((block - y[where]).T)
        error = np.abs(x) @ weight
        if weights is None:
            x.sort(axis=1)
            spread = x @ _rank_weights(weight)
        else:
            order = x.argsort(axis=1)
            x = np.take_along_axis(x, order, axis=1)
            spread = (x * _rank_weights(weight[order])).sum(1)
        result[where] = error - scale * spread
    return result.reshape(observed.shape)


def energy_score(
    observations: ArrayLike,
    draws: ArrayLike,
    *,
    fair: bool = True,
    weights: ArrayLike | None = None,
) -> np.ndarray:
    r"""Score draws of a vector; smaller is better, in units of the outcome.

    .. math::
        \frac1S \sum_s \|\tilde y_s - y\|
        - \frac1{2 S (S - 1)} \sum_{s, t} \|\tilde y_s - \tilde y_t\|

    with Euclidean norms. For one component this is the `crps`, whose `fair` and
    `weights` it shares. Standardise components of different units, or the largest
    dominate. Memory is bounded, but the time per row is O(S² dim): about 10 ms for
    2,000 draws of 10 components. Thin the draws if there are many rows.

    **Shapes**: observations ``(*rows, dim)``, draws ``(draws, *rows, dim)``, weights
    ``(draws,)``, result ``(*rows)``.

    Args:
        observations: The observed vectors.
        draws: Predictive draws of each.
        fair: Whether to score the law of the draws rather than the draws themselves.
        weights: Non-negative weights of the draws, normalised here; equal if None.

    Returns:
        The score of every row, in double precision.

    Raises:
        ValueError: If shapes do not match; if there is no axis of components; if a
            value is NaN or infinite; if the fair version has fewer than two draws.

    References:
        Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and
        Estimation", JASA 2007, section 4.3.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> draws = np.array([[[3.0, 4.0]], [[0.0, 0.0]]])
        >>> px.scores.energy_score(np.zeros((1, 2)), draws, fair=False)
        array([1.25])
    """
    observed, drawn = _check.observations_and_draws(observations, draws)
    if observed.ndim == 0:
        raise ValueError(
            "the energy score needs vectors, with components along the last axis, but "
            "got a single number: use `crps`."
        )
    weight = _check.draw_weights(weights, len(drawn))
    scale = _spread_scale(weight, fair)
    y = observed.reshape(-1, observed.shape[-1])
    result = np.empty(len(y))
    for where, block in row_blocks(drawn, event_ndims=1):
        if not np.isfinite(block).all():
            _check.check_finite("draws", drawn)
        for row, x in zip(
            range(*where.indices(len(y))), np.moveaxis(block, 1, 0), strict=True
        ):
            error = weight @ np.sqrt(((x - y[row]) ** 2).sum(1))
            result[row] = error - scale * _half_distance(x, weight)
    return result.reshape(observed.shape[:-1])


def _spread_scale(weight: np.ndarray, fair: bool) -> float:
    """The factor that makes the spread of weighted draws unbiased; 1 if not fair."""
    if not fair:
        return 1.0
    # One draw with all the weight says nothing of the spread.
    if np.count_nonzero(weight) < 2:
        raise ValueError(
            "the fair score needs at least two draws (of positive weight), got one: "
            "pass fair=False to score a point prediction."
        )
    return float(1 / (1 - weight @ weight))


def _rank_weights(weight: np.ndarray) -> np.ndarray:
    """Coefficients of sorted draws in half of their mean distance.

    In the sum over pairs of larger minus smaller, a draw has a plus sign with all the
    weight below it and a minus sign with all the weight above it.
    """
    return weight * (2 * weight.cumsum(-1) - weight - 1)


def _half_distance(x: np.ndarray, weight: np.ndarray) -> float:
    """Half of the weighted mean distance between the rows of x."""
    total, size = 0.0, max(1, _PAIRS // len(x))
    for start in range(0, len(x), size):
        # This counts a pair within the block twice, and a pair with a later row once.
        block = weight[start : start + size]
        distance = cdist(x[start : start + size], x[start:])
        total += block @ distance @ weight[start:]
        total -= block @ distance[:, : len(block)] @ block / 2
    return float(total)
