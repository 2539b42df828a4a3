"""Split-conformal intervals and sets, which cover new rows at a guaranteed rate."""

import dataclasses
import math
from typing import Self

import jax
import numpy as np
from numpy.typing import ArrayLike

import pyrox_ppl.scores._check as _check
from pyrox_ppl.scores._uniform import uniform


@dataclasses.dataclass(frozen=True)
class ConformalInterval:
    r"""Intervals widened or narrowed by one margin, so that they cover new rows.

    The margin is the :math:`\lceil (n + 1) \, \text{level} \rceil`-th smallest of the n
    held-out scores :math:`\max(l_i - y_i, y_i - u_i)`. If the bounds are predictive
    quantiles, this is conformalised quantile regression (CQR). If both bounds are the
    same point prediction, the scores are absolute residuals.

    **Guarantee**: if held-out and new rows are exchangeable,

    .. math:: \text{level} \le P(y \in [l - m, u + m]) \le \text{level} + \frac1{n + 1},

    where the upper bound assumes that no two scores are equal. The guarantee holds for
    any model, however wrong, on average over held-out sets and new rows. It does not
    hold for each single held-out set, whose coverage varies around the level, nor for
    each input.

    Attributes:
        margin: m, in units of the outcome; negative if it narrows the intervals.
        level: The guaranteed probability.
        rows: n.

    References:
        Lei et al., "Distribution-Free Predictive Inference for Regression", JASA 2018.
        Romano, Patterson and Candès, "Conformalized Quantile Regression", NeurIPS 2019.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> y, mean = np.arange(19.0), np.zeros(19)
        >>> conformal = px.scores.ConformalInterval.fit(y, mean, mean, level=0.9)
        >>> conformal.apply(np.array([100.0]), np.array([100.0]))
        (array([83.]), array([117.]))
    """

    margin: float
    level: float
    rows: int

    @classmethod
    def fit(
        cls,
        observations: ArrayLike,
        lower: ArrayLike,
        upper: ArrayLike,
        *,
        level: float = 0.9,
    ) -> Self:
        """Find the margin on held-out rows.

        **Shapes**: all ``(*rows)``.

        Args:
            observations: Outcomes of rows that the posterior was not fitted to.
            lower: Their lower predictive quantiles, or point predictions.
            upper: Their upper predictive quantiles, or the same point predictions.
            level: The probability to guarantee.

        Returns:
            A `ConformalInterval`.

        Raises:
            ValueError: If shapes differ, a value is NaN or infinite, or a lower bound
                exceeds its upper bound; if the level is not in (0, 1), or if there are
                so few rows that only an infinite margin guarantees it.
        """
        y = _check.finite_array("observations", observations)
        low = _check.finite_array("lower bounds", lower)
        high = _check.finite_array("upper bounds", upper)
        _check.same_shape(observations=y, lower=low, upper=high)
        _check.check_bounds(low, high)
        margin = _corrected_quantile(np.maximum(low - y, y - high), level)
        return cls(margin, level, y.size)

    def apply(
        self, lower: ArrayLike, upper: ArrayLike
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute the intervals of new rows.

        Where a negative margin would make the bounds cross, both become their midpoint.

        **Shapes**: all ``(*rows)``.

        Args:
            lower: Lower bounds, of the same kind as those of `fit`.
            upper: Upper bounds.

        Returns:
            Lower and upper bounds in double precision.

        Raises:
            ValueError: If shapes differ, a bound is NaN or infinite, or a lower bound
                exceeds its upper bound.
        """
        low = _check.finite_array("lower bounds", lower)
        high = _check.finite_array("upper bounds", upper)
        _check.same_shape(lower=low, upper=high)
        _check.check_bounds(low, high)
        # A point instead of an empty interval can only cover more.
        margin = np.maximum(self.margin, (low - high) / 2)
        low, high = low - margin, high + margin
        return np.minimum(low, high), high


@dataclasses.dataclass(frozen=True)
class ConformalSets:
    r"""Adaptive prediction sets (APS): sets of classes that cover new labels.

    The score of class k is the total probability of the more probable classes plus a
    random share of its own,

    .. math:: \sum_{j: p_j > p_k} p_j + v \sum_{j: p_j = p_k} p_j,

    with one uniform v per row. A set holds the classes whose score is at most the
    :math:`\lceil (n + 1) \, \text{level} \rceil`-th smallest score of the n held-out
    labels.

    **Guarantee**: if held-out and new rows are exchangeable,

    .. math:: \text{level} \le P(y \in C) \le \text{level} + \frac1{n + 1},

    where the upper bound rests on the randomisation, which makes scores distinct. The
    guarantee holds for any model, however wrong, on average over held-out sets and new
    rows. It does not hold for each single held-out set, nor for each class. A set may
    be empty.

    Attributes:
        threshold: The largest score that a set admits.
        level: The guaranteed probability.
        rows: n.

    References:
        Romano, Sesia and Candès, "Classification with Valid and Adaptive Coverage",
        NeurIPS 2020.

    Example:
        >>> import jax, numpy as np, pyrox_ppl as px
        >>> fit_key, apply_key = jax.random.split(jax.random.key(0))
        >>> p = np.tile([0.7, 0.2, 0.1], (1000, 1))
        >>> labels = np.repeat([0, 1, 2], [700, 200, 100])
        >>> sets = px.scores.ConformalSets.fit(labels, p, level=0.9, rng_key=fit_key)
        >>> held = sets.apply(p, rng_key=apply_key)
        >>> held.shape, 0.87 < held[np.arange(1000), labels].mean() < 0.93
        ((1000, 3), np.True_)
    """

    threshold: float
    level: float
    rows: int

    @classmethod
    def fit(
        cls,
        labels: ArrayLike,
        probabilities: ArrayLike,
        *,
        level: float = 0.9,
        rng_key: jax.Array,
    ) -> Self:
        """Find the threshold on held-out rows.

        **Shapes**: labels ``(*rows)``, probabilities ``(*rows, classes)``.

        Args:
            labels: Class numbers from 0, of rows that the posterior was not fitted to.
            probabilities: Their predictive probabilities, averaged over draws.
            level: The probability to guarantee.
            rng_key: A JAX key for the randomisation.

        Returns:
            A `ConformalSets`.

        Raises:
            ValueError: If labels or probabilities are not valid or do not match; if the
                level is not in (0, 1), or if there are so few rows that only sets of
                all classes guarantee it.
        """
        _check.need_class_axis(labels, probabilities)
        p = _check.class_probabilities("probabilities", probabilities)
        numbers = _check.class_numbers(labels, p.shape[:-1], p.shape[-1])
        scores = _adaptive_scores(p, uniform(rng_key, numbers.shape, purpose=1))
        scores = np.take_along_axis(scores, numbers[..., None], axis=-1)
        return cls(_corrected_quantile(scores, level), level, numbers.size)

    def apply(self, probabilities: ArrayLike, *, rng_key: jax.Array) -> np.ndarray:
        """Compute the sets of new rows.

        **Shapes**: probabilities and result ``(*rows, classes)``.

        Args:
            probabilities: Predictive probabilities, averaged over draws.
            rng_key: A JAX key for the randomisation.

        Returns:
            Whether each class is in the set.

        Raises:
            ValueError: If the probabilities are not valid.
        """
        p = _check.class_probabilities("probabilities", probabilities)
        scores = _adaptive_scores(p, uniform(rng_key, p.shape[:-1], purpose=2))
        return scores <= self.threshold


def _corrected_quantile(scores: np.ndarray, level: float) -> float:
    """The score that a new one does not exceed, with probability at least the level."""
    _check.check_level(level)
    number = scores.size
    # Rounding keeps products such as 100 * 0.07 whole: it is 7.000000000000001.
    rank = math.ceil(round((number + 1) * level, 9))
    if rank > number:
        fewest = math.ceil(round(level / (1 - level), 9))
        raise ValueError(
            f"{number} held-out rows are too few to guarantee a level of {level:g}, "
            f"which takes at least {fewest}: hold out more rows, or lower the level."
        )
    return float(np.partition(scores.reshape(-1), rank - 1)[rank - 1])


def _adaptive_scores(p: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The score of every class: the mass above it and the share v of its ties' mass."""
    order = np.argsort(-p, axis=-1)
    falling = np.take_along_axis(p, order, axis=-1)
    mass = np.cumsum(falling, axis=-1)
    # Every class of a run of ties gets the mass before the run and up to its end.
    change = np.diff(falling, axis=-1) != 0
    edge = np.ones((*p.shape[:-1], 1), dtype=bool)
    first = np.concatenate([edge, change], axis=-1)
    last = np.concatenate([change, edge], axis=-1)
    before = np.maximum.accumulate(np.where(first, mass - falling, -1), axis=-1)
    upto = np.where(last, mass, np.inf)[..., ::-1]
    upto = np.minimum.accumulate(upto, axis=-1)[..., ::-1]
    scores = before + v[..., None] * (upto - before)
    return np.take_along_axis(scores, np.argsort(order, axis=-1), axis=-1)
