"""Reliability of class probabilities: how often an event of probability p happens."""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

import pyrox_ppl.scores._check as _check
from pyrox_ppl.scores._classes import accuracy

type Binning = Literal["equal_width", "equal_mass"]


@dataclasses.dataclass(frozen=True, eq=False)
class CalibrationError:
    """An expected calibration error, and the bins that it depends on.

    Attributes:
        value: The error in [0, 1]; smaller is better.
        binning: How the bins were made.
        edges: Their edges, ``(bins + 1,)``.
        count: The number of rows in each, ``(bins,)``.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> error = px.scores.expected_calibration_error([1, 0], [0.9, 0.9], bins=2)
        >>> round(error.value, 3), error.edges
        (0.4, array([0. , 0.5, 1. ]))
    """

    value: float
    binning: str
    edges: np.ndarray
    count: np.ndarray

    def __str__(self) -> str:
        how = self.binning.replace("_", " ")
        return f"ECE {self.value:.4f} ({len(self.count)} bins of {how})"


@dataclasses.dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """How often predictions of a confidence are right, by bins of the confidence.

    Attributes:
        confidence: Mean confidence in each bin; NaN where the bin is empty.
        frequency: How often the predictions in it are right; NaN where it is empty.
        count: The number of rows in it.
        lower: Lower bound of a Clopper-Pearson interval of the frequency.
        upper: Its upper bound.
        edges: The edges of the bins, one more than there are bins.
        binning: How the bins were made.
        level: The probability of the intervals.

    Example:
        >>> import pyrox_ppl as px
        >>> curve = px.scores.reliability_curve([1, 0], [0.9, 0.9], bins=2)
        >>> curve  # doctest: +NORMALIZE_WHITESPACE
        ReliabilityCurve(2 bins of equal width, 2 rows; frequency minus confidence from
        -0.40 to -0.40)
        >>> curve.count, curve.upper.round(3)
        (array([0, 2]), array([  nan, 0.975]))
    """

    confidence: np.ndarray
    frequency: np.ndarray
    count: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    edges: np.ndarray
    binning: str
    level: float

    def __repr__(self) -> str:
        seen = self.count > 0
        gap = (self.frequency - self.confidence)[seen]
        return (
            f"ReliabilityCurve({len(self.count)} bins of "
            f"{self.binning.replace('_', ' ')}, {self.count.sum()} rows; frequency "
            f"minus confidence from {gap.min():+.2f} to {gap.max():+.2f})"
        )


def reliability_curve(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    bins: int = 15,
    binning: Binning = "equal_width",
    level: float = 0.9,
) -> ReliabilityCurve:
    """Compare confidence with frequency, which are equal if predictions are calibrated.

    For classes, the confidence is the largest probability and the frequency is the
    `accuracy`. For a binary outcome, the confidence is the probability of label 1 and
    the frequency is how often label 1 occurs; pass ``labels == k`` and
    ``probabilities[:, k]`` to look at class k alone. A bin includes its right edge.

    **Shapes**: labels ``(*rows)``; probabilities ``(*rows, classes)``, or ``(*rows)``
    of label 1 for a binary outcome; arrays of the result ``(bins,)``.

    Args:
        labels: Class numbers from 0.
        probabilities: Predictive probabilities, averaged over draws.
        bins: The number of bins.
        binning: ``"equal_width"`` divides [0, 1] evenly. ``"equal_mass"`` divides at
            quantiles of the confidence, with fewer bins where these coincide.
        level: The probability of the Clopper-Pearson intervals.

    Returns:
        A `ReliabilityCurve`.

    Raises:
        ValueError: If labels or probabilities are not valid or do not match; if there
            is no bin, `binning` is unknown or the level is not in (0, 1).

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Clopper and
        Pearson, "The use of confidence or fiducial limits", Biometrika 1934.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> p, y = np.array([0.2, 0.3, 0.9, 0.8]), np.array([0, 1, 1, 1])
        >>> curve = px.scores.reliability_curve(y, p, bins=2)
        >>> curve.confidence, curve.frequency
        (array([0.25, 0.85]), array([0.5, 1. ]))
    """
    _check.check_level(level)
    _, p, is_binary = _check.labels_and_probabilities(labels, probabilities)
    if is_binary:
        confidence, right = p[..., 1], np.asarray(labels, dtype=np.float64)
    else:
        confidence, right = p.max(-1), accuracy(labels, probabilities)
    confidence, right = confidence.reshape(-1), right.reshape(-1)
    edges = _edges(confidence, bins, binning)
    place = np.searchsorted(edges[1:-1], confidence)
    count = np.bincount(place, minlength=len(edges) - 1)
    hits = np.bincount(place, right, minlength=len(count))
    total = np.bincount(place, confidence, minlength=len(count))
    empty = np.where(count == 0, np.nan, count)
    # Quantiles of Beta distributions, whose limits are 0 without hits and 1 without
    # misses. Arithmetic with `empty` makes NaN of the bins without rows.
    misses, tail = empty - hits, (1 - level) / 2
    lower = np.where(hits > 0, betaincinv(hits, misses + 1, tail), 0 * empty)
    upper = np.where(misses > 0, betaincinv(hits + 1, misses, 1 - tail), 1 + 0 * empty)
    return ReliabilityCurve(
        total / empty, hits / empty, count, lower, upper, edges, binning, level
    )


def expected_calibration_error(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    bins: int = 15,
    binning: Binning = "equal_width",
) -> CalibrationError:
    r"""The mean gap between confidence and frequency; smaller is better.

    .. math:: \sum_b \frac{n_b}{n} |\text{frequency}_b - \text{confidence}_b|

    over the bins of `reliability_curve`. The error depends on the bins, so they come
    with it. It is not a proper score: predicting the base rate for every row gives
    zero. If bins have few rows, it is positive even for calibrated predictions.

    **Shapes**: labels ``(*rows)``; probabilities ``(*rows, classes)``, or ``(*rows)``
    of label 1 for a binary outcome.

    Args:
        labels: Class numbers from 0.
        probabilities: Predictive probabilities, averaged over draws.
        bins: The number of bins.
        binning: ``"equal_width"`` or ``"equal_mass"``, as for `reliability_curve`.

    Returns:
        A `CalibrationError`; its `value` is the error.

    Raises:
        ValueError: If labels or probabilities are not valid or do not match; if there
            is no bin or `binning` is unknown.

    References:
        Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using
        Bayesian Binning", AAAI 2015. Guo et al., "On Calibration of Modern Neural
        Networks", ICML 2017.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> p, y = np.array([0.2, 0.3, 0.9, 0.8]), np.array([0, 1, 1, 1])
        >>> print(px.scores.expected_calibration_error(y, p, bins=2))
        ECE 0.2000 (2 bins of equal width)
    """
    curve = reliability_curve(labels, probabilities, bins=bins, binning=binning)
    gap = np.nan_to_num(np.abs(curve.frequency - curve.confidence))
    value = float(curve.count @ gap / curve.count.sum())
    return CalibrationError(value, binning, curve.edges, curve.count)


def _edges(confidence: np.ndarray, bins: int, binning: str) -> np.ndarray:
    if bins < 1:
        raise ValueError(f"there must be at least one bin, got bins={bins}.")
    even = np.linspace(0, 1, bins + 1)
    if binning == "equal_width":
        return even
    if binning == "equal_mass":
        edges = np.unique(np.quantile(confidence, even))
        # All rows have the same confidence: one bin, which still has two edges.
        return edges if len(edges) > 1 else np.repeat(edges, 2)
    raise ValueError(f"binning must be 'equal_width' or 'equal_mass', got {binning!r}.")
