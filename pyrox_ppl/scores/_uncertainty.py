"""Uncertainty in two parts: noise in the outcome, and disagreement of the draws."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

import pyrox_ppl.scores._check as _check
from pyrox_ppl.scores._row_blocks import row_blocks


class EntropySplit(NamedTuple):
    """Entropies of every row in nats, ``(*rows)`` each.

    Attributes:
        total: The entropy of the mean probabilities.
        aleatoric: The mean entropy of the draws' probabilities.
        epistemic: Their difference, the mutual information.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> split = px.scores.entropy_split(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> split.aleatoric + split.epistemic == split.total
        array([ True])
    """

    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray


class VarianceSplit(NamedTuple):
    """Variances of every row in squared units of the outcome, ``(*rows)`` each.

    Attributes:
        total: The predictive variance, the sum of the two.
        aleatoric: The mean of the draws' variances.
        epistemic: The variance of the draws' means.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> total, aleatoric, epistemic = px.scores.variance_split(
        ...     np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]])
        ... )
        >>> total
        array([5.])
    """

    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray


def predictive_entropy(probabilities: ArrayLike) -> np.ndarray:
    r"""The entropy :math:`-\sum_k p_k \log p_k` in nats; larger means less sure.

    **Shapes**: probabilities ``(*rows, classes)``, result ``(*rows)``.

    Args:
        probabilities: Class probabilities.

    Returns:
        The entropy of every row, in double precision.

    Raises:
        ValueError: If there are fewer than two classes, or if probabilities are not in
            [0, 1] or do not sum to 1.

    References:
        Shannon, "A Mathematical Theory of Communication", 1948.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> px.scores.predictive_entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).round(3)
        array([0.693, 0.   ])
    """
    p = _check.class_probabilities("probabilities", probabilities)
    return np.asarray(_information(p).sum(-1))


def mutual_information(
    probability_draws: ArrayLike, *, weights: ArrayLike | None = None
) -> np.ndarray:
    """The epistemic part of `entropy_split`; larger means more to learn.

    It is the information, in nats, that a row's label would give about the parameters.
    Active learning labels the rows of largest mutual information next (BALD).

    **Shapes**: probabilities ``(draws, *rows, classes)``, weights ``(draws,)``, result
    ``(*rows)``.

    Args:
        probability_draws: Class probabilities under every draw.
        weights: Non-negative weights of the draws, normalised here; equal if None.

    Returns:
        The mutual information of every row, in double precision.

    Raises:
        ValueError: For the same reasons as `entropy_split`.

    References:
        Houlsby et al., "Bayesian Active Learning for Classification and Preference
        Learning", 2011.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> draws = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
        >>> px.scores.mutual_information(draws).round(3)
        array([0.693, 0.   ])
    """
    return entropy_split(probability_draws, weights=weights).epistemic


def entropy_split(
    probability_draws: ArrayLike, *, weights: ArrayLike | None = None
) -> EntropySplit:
    r"""Split the predictive entropy of classes into aleatoric and epistemic.

    .. math::
        \underbrace{H\big(\textstyle\frac1S \sum_s p_s\big)}_{\text{total}}
        = \underbrace{\textstyle\frac1S \sum_s H(p_s)}_{\text{aleatoric}}
        + \underbrace{I(y; \theta)}_{\text{epistemic}}

    for the class probabilities :math:`p_s` of S draws. Memory is bounded.

    **Shapes**: probabilities ``(draws, *rows, classes)``, weights ``(draws,)``, results
    ``(*rows)``. For a binary outcome with probability p of label 1, pass
    ``np.stack([1 - p, p], axis=-1)``.

    Args:
        probability_draws: Class probabilities under every draw.
        weights: Non-negative weights of the draws, normalised here; equal if None.

    Returns:
        An `EntropySplit` in nats.

    Raises:
        ValueError: If there are no axes of draws and classes or fewer than two classes;
            if probabilities are not in [0, 1] or do not sum to 1; if the weights are
            not one non-negative number for every draw.

    References:
        Depeweg et al., "Decomposition of Uncertainty in Bayesian Deep Learning for
        Efficient and Risk-sensitive Learning", ICML 2018.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> draws = np.array([[[0.9, 0.1]], [[0.1, 0.9]]])
        >>> split = px.scores.entropy_split(draws)
        >>> split.total.round(3), split.aleatoric.round(3), split.epistemic.round(3)
        (array([0.693]), array([0.325]), array([0.368]))
    """
    name = "probability_draws"
    draws = _check.real_array(name, probability_draws)
    if draws.ndim < 2 or draws.shape[-1] < 2:
        raise ValueError(
            f"{name} must have the shape (draws, *rows, classes) with at least two "
            f"classes, got {draws.shape}; for a binary outcome with probability p, "
            "pass `np.stack([1 - p, p], axis=-1)`."
        )
    weight = _check.draw_weights(weights, len(draws))
    slack, rows = _check.tolerance(draws.dtype), draws.shape[1:-1]
    total, aleatoric = np.empty((2, int(np.prod(rows))))
    for where, block in row_blocks(draws, event_ndims=1):
        block = _check.probabilities_in_range(name, block, slack)
        # Averages over draws as products of a vector and a matrix, which are fast.
        mean = (weight @ block.reshape(len(draws), -1)).reshape(block.shape[1:])
        information = weight @ _information(block).reshape(len(draws), -1)
        total[where] = _information(mean).sum(-1)
        aleatoric[where] = information.reshape(mean.shape).sum(-1)
    # By Jensen's inequality only rounding makes it negative.
    epistemic = np.maximum(total - aleatoric, 0)
    return EntropySplit(*(x.reshape(rows) for x in (total, aleatoric, epistemic)))


def variance_split(
    means: ArrayLike, variances: ArrayLike, *, weights: ArrayLike | None = None
) -> VarianceSplit:
    r"""Split the predictive variance into aleatoric and epistemic.

    .. math::
        \operatorname{Var}[y]
        = \underbrace{\operatorname{E}_\theta \operatorname{Var}[y \mid \theta]}
          _{\text{aleatoric}}
        + \underbrace{\operatorname{Var}_\theta \operatorname{E}[y \mid \theta]}
          _{\text{epistemic}},

    the law of total variance for the mixture of the draws. The variance of the means
    therefore divides by their number, not by one less.

    **Shapes**: means and variances ``(draws, *rows)``, weights ``(draws,)``, results
    ``(*rows)``.

    Args:
        means: The outcome's mean under every draw.
        variances: The outcome's variance under every draw.
        weights: Non-negative weights of the draws, normalised here; equal if None.

    Returns:
        A `VarianceSplit` in squared units of the outcome.

    Raises:
        ValueError: If shapes differ; if a value is NaN or infinite or a variance
            negative; if the weights are not one non-negative number for every draw.

    References:
        Depeweg et al., "Decomposition of Uncertainty in Bayesian Deep Learning for
        Efficient and Risk-sensitive Learning", ICML 2018.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> means, variances = np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]])
        >>> px.scores.variance_split(means, variances)
        VarianceSplit(total=array([5.]), aleatoric=array([4.]), epistemic=array([1.]))
    """
    mean = _check.real_array("means", means)
    variance = _check.real_array("variances", variances)
    _check.same_shape(means=mean, variances=variance)
    if mean.ndim == 0:
        raise ValueError(
            "means and variances have the axis of draws first, got single numbers."
        )
    weight = _check.draw_weights(weights, len(mean))
    epistemic, aleatoric = np.empty((2, mean[0].size))
    blocks = zip(row_blocks(mean), row_blocks(variance), strict=True)
    for (where, m), (_, v) in blocks:
        if not (np.isfinite(m).all() and np.isfinite(v).all()):
            _check.check_finite("means", mean)
            _check.check_finite("variances", variance)
        if (v < 0).any():
            raise ValueError(f"variances must not be negative, got {v.min():g}.")
        epistemic[where] = weight @ (m - weight @ m) ** 2
        aleatoric[where] = weight @ v
    epistemic, aleatoric = (x.reshape(mean.shape[1:]) for x in (epistemic, aleatoric))
    return VarianceSplit(epistemic + aleatoric, aleatoric, epistemic)


def _information(p: np.ndarray) -> np.ndarray:
    """-p log p, 0 at p = 0; `scipy.special.entr` takes several times as long."""
    information = np.maximum(p, np.finfo(np.float64).tiny)
    np.log(information, out=information)
    np.multiply(information, p, out=information)
    return np.negative(information, out=information)
