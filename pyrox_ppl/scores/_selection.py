"""Selection by uncertainty: rows to label next, and rows to leave to a human."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

import pyrox_ppl.scores._check as _check
from pyrox_ppl.scores._classes import accuracy


class RejectionCurve(NamedTuple):
    """The accuracy of the rows that are kept as more of the uncertain ones are left.

    Attributes:
        rejected: The share of rows left out, from 0 up.
        accuracy: The accuracy of the others.
        threshold: The largest uncertainty among them.
    """

    rejected: np.ndarray
    accuracy: np.ndarray
    threshold: np.ndarray


def most_uncertain(uncertainty: ArrayLike, number: int) -> np.ndarray:
    """The rows of largest uncertainty, the largest first; of equals the earlier.

    **Shapes**: uncertainty ``(rows,)``, result ``(number,)``.

    Args:
        uncertainty: Of every row, such as `mutual_information` or the epistemic part of
            `variance_split`.
        number: How many rows to choose.

    Returns:
        Their indices.

    Raises:
        ValueError: If the uncertainty has other than one axis or is NaN, or if there
            are not that many rows.

    References:
        Houlsby et al., "Bayesian Active Learning for Classification and Preference
        Learning", 2011.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> px.scores.most_uncertain(np.array([0.1, 0.7, 0.2]), 2)
        array([1, 2])
    """
    array = _one_axis(uncertainty)
    if not 1 <= number <= array.size:
        raise ValueError(
            f"number must be from 1 to the number of rows, {array.size}; got {number}."
        )
    return np.argsort(-array, kind="stable")[:number]


def accuracy_rejection_curve(
    labels: ArrayLike, probabilities: ArrayLike, uncertainty: ArrayLike
) -> RejectionCurve:
    """Accuracy of what is kept when the most uncertain rows are rejected.

    It rises if the uncertainty tells wrong predictions from right ones. Rows of equal
    uncertainty are kept or rejected together, so that their order does not matter.

    **Shapes**: labels and uncertainty ``(rows,)``; probabilities ``(rows, classes)``,
    or ``(rows,)`` of label 1 if the outcome is binary; arrays of the result one entry
    for every different uncertainty.

    Args:
        labels: Class numbers from 0.
        probabilities: Predictive probabilities, averaged over draws.
        uncertainty: Of every row, such as `predictive_entropy`.

    Returns:
        A `RejectionCurve`, which begins where nothing is rejected.

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
            f"uncertainties are one for every row, of shape (rows,); got {array.shape}."
        )
    if np.isnan(array).any():
        raise ValueError(
            f"uncertainties are NaN for {np.isnan(array).sum()} of {array.size} rows: "
            "leave them out, and find out where predictions break down."
        )
    return array
