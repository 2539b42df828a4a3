"""Scores of class probabilities: log score, Brier, ranked probability, accuracy."""

import numpy as np
from numpy.typing import ArrayLike

import pyrox_ppl.scores._check as _check


def class_log_score(labels: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    r"""The log probability of the label, :math:`\log p_y`; larger is better, in nats.

    A label of probability zero scores minus infinity.

    **Shapes**: labels ``(*rows)``; probabilities ``(*rows, classes)``, or ``(*rows)``
    of label 1 for a binary outcome; result ``(*rows)``.

    Args:
        labels: Class numbers from 0.
        probabilities: Predictive probabilities, averaged over draws.

    Returns:
        The score of every row, in double precision.

    Raises:
        ValueError: If shapes do not match, a label is no class number, or the
            probabilities are not in [0, 1] or do not sum to 1.

    References:
        Good, "Rational Decisions", JRSS B 1952.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> p = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
        >>> px.scores.class_log_score(np.array([0, 2]), p).round(3)
        array([-0.693, -0.223])
    """
    numbers, p, _ = _check.labels_and_probabilities(labels, probabilities)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(_at_label(p, numbers)))


def brier_score(labels: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    r"""Squared distance of probabilities from the outcome; smaller is better.

    .. math:: \sum_k (p_k - 1\{y = k\})^2 \in [0, 2],

    and :math:`(p - y)^2 \in [0, 1]`, half of it, for the probability p of a binary
    outcome.

    **Shapes**: labels ``(*rows)``; probabilities ``(*rows, classes)``, or ``(*rows)``
    of label 1 for a binary outcome; result ``(*rows)``.

    Args:
        labels: Class numbers from 0.
        probabilities: Predictive probabilities, averaged over draws.

    Returns:
        The score of every row, in double precision.

    Raises:
        ValueError: If shapes do not match, a label is no class number, or the
            probabilities are not in [0, 1] or do not sum to 1.

    References:
        Brier, "Verification of forecasts expressed in terms of probability", Monthly
        Weather Review 1950.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> p = np.array([[0.5, 0.3, 0.2]])
        >>> px.scores.brier_score(np.array([0]), p).round(6)
        array([0.38])
        >>> px.scores.brier_score(np.array([1]), np.array([0.7])).round(6)
        array([0.09])
    """
    numbers, p, is_binary = _check.labels_and_probabilities(labels, probabilities)
    outcome = np.arange(p.shape[-1]) == numbers[..., None]
    return np.asarray(((p - outcome) ** 2).sum(-1) / (2 if is_binary else 1))


def ranked_probability_score(labels: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    r"""Score probabilities of *ordered* classes; smaller is better.

    .. math:: \sum_{k} \Big(\sum_{j \le k} p_j - 1\{y \le k\}\Big)^2
        \in [0, \text{classes} - 1]

    It measures how far away the probable classes are, so it depends on the numbering of
    the classes. Use `brier_score` for classes without an order.

    **Shapes**: labels ``(*rows)``; probabilities ``(*rows, classes)``; result
    ``(*rows)``.

    Args:
        labels: Class numbers from 0, in the order of the classes.
        probabilities: Predictive probabilities, averaged over draws.

    Returns:
        The score of every row, in double precision.

    Raises:
        ValueError: If shapes do not match, a label is no class number, or the
            probabilities are not in [0, 1] or do not sum to 1.

    References:
        Epstein, "A scoring system for probability forecasts of ranked categories",
        Journal of Applied Meteorology 1969.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> p = np.array([[0.1, 0.2, 0.3, 0.4]])
        >>> px.scores.ranked_probability_score(np.array([2]), p).round(6)
        array([0.26])
    """
    numbers, p, is_binary = _check.labels_and_probabilities(labels, probabilities)
    if is_binary:
        raise ValueError(
            "the ranked probability score needs a last axis of ordered classes; for a "
            "binary outcome it equals the `brier_score`."
        )
    reached = numbers[..., None] <= np.arange(p.shape[-1])
    return np.asarray(((p.cumsum(-1) - reached) ** 2).sum(-1))


def accuracy(labels: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """Whether the most probable class is the label; larger is better.

    It is 1 or 0, and 1/m if the label is among m classes that tie for the most
    probable, so that the numbering of the classes does not matter. The mean over rows
    is the accuracy.

    **Shapes**: labels ``(*rows)``; probabilities ``(*rows, classes)``, or ``(*rows)``
    of label 1 for a binary outcome; result ``(*rows)``.

    Args:
        labels: Class numbers from 0.
        probabilities: Predictive probabilities, averaged over draws.

    Returns:
        A number in [0, 1] for every row.

    Raises:
        ValueError: If shapes do not match, a label is no class number, or the
            probabilities are not in [0, 1] or do not sum to 1.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> p = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
        >>> px.scores.accuracy(np.array([0, 1]), p)
        array([1. , 0.5])
    """
    numbers, p, _ = _check.labels_and_probabilities(labels, probabilities)
    best = p == p.max(-1, keepdims=True)
    return np.asarray(_at_label(best, numbers) / best.sum(-1))


def _at_label(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, labels[..., None], axis=-1).squeeze(-1)
