"""Selection by uncertainty: which rows to label next, and which to leave undecided."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

import pyrox_ppl.scores._check as _check
from pyrox_ppl.scores._classes import accuracy


class RejectionCurve(NamedTuple):
    """The accuracy of the rows that remain as more uncertain rows are rejected.

    Attributes:
        rejected: The share of rows rejected, ascending from 0.
        accuracy: The accuracy of the rows kept.
        threshold: The largest uncertainty among the rows kept.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> p, uncertainty = np.array([0.9, 0.6]), np.array([0.1, 0.2])
        >>> curve = px.scores.accuracy_rejection_curve([1, 0], p, uncertainty)
        >>> curve  # doctest: +NORMALIZE_WHITESPACE
        RejectionCurve(2 points; accuracy 0.500 with all rows, 1.000 with 50 % of them
        rejected)
        >>> curve.accuracy
        array([0.5, 1. ])
    """

    rejected: np.ndarray
    accuracy: np.ndarray
    threshold: np.ndarray

    def __repr__(self) -> str:
        half = np.searchsorted(self.rejected, 0.5)
        later = ""
        if half < len(self.rejected):
            share = 100 * self.rejected[half]
            later = f", {self.accuracy[half]:.3f} with {share:.0f} % of them rejected"
        return (
            f"RejectionCurve({len(self.rejected)} points; accuracy "
            f"{self.accuracy[0]:.3f} with all rows{later})"
        )


def most_uncertain(uncertainty: ArrayLike, number: int) -> np.ndarray:
    """Choose the rows of largest uncertainty, largest first; ties keep their order.

    **Shapes**: uncertainty ``(rows,)``, result ``(number,)``.

    Args:
        uncertainty: The uncertainty of every row, such as `mutual_information` or the
            epistemic part of `variance_split`.
        number: How many rows to choose.

    Returns:
        Their indices.

    Raises:
        ValueError: If the uncertainty is NaN or does not have exactly one axis, or if
            there are fewer rows than `number`.

    References:
        Houlsby et al., "Bayesian Active Learning for Classification and Preference
        Learning", 2011.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> px.scores.most_uncertain(np.array([0.1, 0.7, 0.2]), 2)
        array([1, 2])
    """
    array = _one_axis(uncertainty)
    is_whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not is_whole or not 1 <= number <= array.size:
        raise ValueError(
            "number must be a whole number from 1 to the number of rows, "
            f"{array.size}; got {number}."
        )
    return np.argsort(-array, kind="stable")[:number]


def accuracy_rejection_curve(
    labels: ArrayLike, probabilities: ArrayLike, uncertainty: ArrayLike
) -> RejectionCurve:
    """Compute the accuracy of the remaining rows as the most uncertain are rejected.

    The accuracy rises if wrong predictions are more uncertain than right ones. Rows of
    equal uncertainty are kept or rejected together, so their order does not matter.

    **Shapes**: labels and uncertainty ``(rows,)``; probabilities ``(rows, classes)``,
    or ``(rows,)`` of label 1 for a binary outcome; the arrays of the result have one
    entry for every distinct uncertainty.

    Args:
        labels: Class numbers from 0.
        probabilities: Predictive probabilities, averaged over draws.
        uncertainty: The uncertainty of every row, such as `predictive_entropy`.

    Returns:
        A `RejectionCurve`, which starts with all rows kept.

    Raises:
        ValueError: If labels, probabilities or uncertainties are not valid or do not
            match.

    References:
        Nadeem, Zucker and Hanczar, "Accuracy-Rejection Curves (ARCs) for Comparing
        Classification Methods with a Reject Option", MLSB 2010.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> p, labels = np.array([0.9, 0.6, 0.2]), np.array([1, 0, 0])
        >>> curve = px.scores.accuracy_rejection_curve(labels, p, p * (1 - p))
        >>> curve.rejected.round(2), curve.accuracy.round(2)
        (array([0.  , 0.33, 0.67]), array([0.67, 1.  , 1.  ]))
    """
    array = _one_axis(uncertainty)
    right = accuracy(labels, probabilities)
    _check.same_shape(labels=right, uncertainty=array)
    threshold, place, count = np.unique(array, return_inverse=True, return_counts=True)
    kept = count.cumsum()
    accurate = np.bincount(place, right).cumsum() / kept
    curve = (1 - kept / array.size, accurate, threshold)
    return RejectionCurve(*(part[::-1] for part in curve))


def _one_axis(uncertainty: ArrayLike) -> np.ndarray:
    array = _check.real_array("uncertainties", uncertainty).astype(np.float64)
    if array.ndim != 1:
        raise ValueError(
            f"uncertainties need one value for every row, so one axis; got the shape "
            f"{array.shape}."
        )
    if np.isnan(array).any():
        raise ValueError(
            f"uncertainties are NaN for {np.isnan(array).sum()} of {array.size} rows: "
            "leave them out, and find out where predictions break down."
        )
    return array
