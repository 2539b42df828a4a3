"""Temperature: class probabilities become as sure as held-out labels justify."""

import dataclasses
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import root_scalar
from scipy.special import softmax

import pyrox_ppl.scores._check as _check

_EXTREME = 1e4  # temperatures beyond it, or below its inverse, count as infinite or 0


@dataclasses.dataclass(frozen=True)
class Temperature:
    r"""One temperature T for all classes, fitted by the log score of held-out labels.

    .. math:: \operatorname{softmax}(\log p / T)

    T > 1 makes predictions less sure: the held-out rows found them over-confident. T <
    1 sharpens them: they were under-confident. The most probable class stays the same,
    and so does the accuracy.

    **Guarantee**: no other temperature has a better mean log score on the held-out
    rows, because the negative log score is convex in 1/T. On new rows the log score
    approaches the best that one temperature can reach as held-out rows become many.
    Unlike conformal sets, a temperature has no guarantee for a finite number of rows.

    Attributes:
        temperature: T.
        rows: The number of held-out rows.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Example:
        >>> import numpy as np, pyrox_ppl as px
        >>> p = np.tile([0.99, 0.01], (10, 1))
        >>> labels = np.array([0] * 8 + [1] * 2)
        >>> tempered = px.scores.Temperature.fit(labels, p)
        >>> print(tempered)
        temperature 3.31, above 1: predictions become less sure (fitted to 10 rows)
        >>> tempered.apply(p)[0].round(3)
        array([0.8, 0.2])
    """

    temperature: float
    rows: int

    def __post_init__(self) -> None:
        if not 0 < self.temperature < np.inf:
            raise ValueError(
                f"temperature must be positive and finite, got {self.temperature}."
            )

    def __str__(self) -> str:
        effect = "below 1: predictions become surer"
        if self.temperature >= 1:
            effect = "above 1: predictions become less sure"
        return (
            f"temperature {self.temperature:.3g}, {effect} (fitted to {self.rows} rows)"
        )

    @classmethod
    def fit(
        cls,
        labels: ArrayLike,
        probabilities: ArrayLike | None = None,
        *,
        logits: ArrayLike | None = None,
    ) -> Self:
        """Fit the temperature on held-out rows.

        **Shapes**: labels ``(*rows)``, probabilities or logits ``(*rows, classes)``.

        Args:
            labels: Class numbers from 0, of rows that the posterior was not fitted to.
            probabilities: Their predictive probabilities, averaged over draws.
            logits: Unnormalised log probabilities, instead of probabilities.

        Returns:
            A `Temperature`.

        Raises:
            ValueError: If both or neither of `probabilities` and `logits` are given; if
                they or the labels are invalid or do not match; if all labels are of one
                class; if a label has probability zero; if the best temperature is 0 or
                infinite.
        """
        _check.need_class_axis(labels, probabilities)
        scores = _logits(probabilities, logits)
        numbers = _check.class_numbers(labels, scores.shape[:-1], scores.shape[-1])
        scores, numbers = scores.reshape(-1, scores.shape[-1]), numbers.reshape(-1)
        if (numbers == numbers[0]).all():
            raise ValueError(
                f"all {numbers.size} labels are of class {numbers[0]}: a temperature "
                "needs held-out rows of at least two classes."
            )
        at_label = np.take_along_axis(scores, numbers[:, None], axis=1)
        if np.isneginf(at_label).any():
            raise ValueError(
                f"{np.isneginf(at_label).sum()} labels have probability zero, which no "
                "temperature changes: average over more draws, or pass `logits`."
            )
        # A class of probability zero keeps it at every temperature.
        gaps = np.where(np.isneginf(scores), 0, scores - at_label)

        def slope(log_inverse: float) -> float:
            """The derivative of the mean negative log score with respect to 1/T."""
            weight = softmax(np.exp(log_inverse) * scores, axis=1)
            return float((weight * gaps).sum(1).mean())

        # By convexity the slope increases with 1/T, so it has at most one root.
        coldest, hottest = np.log(_EXTREME), -np.log(_EXTREME)
        if slope(coldest) <= 0:
            raise ValueError(
                f"the most probable class is the label in all {numbers.size} held-out "
                "rows, so the best temperature is 0: hold out more rows, until the "
                "model gets some of them wrong."
            )
        if slope(hottest) >= 0:
            raise ValueError(
                "labels are on average no more probable than other classes, so the "
                "best temperature is infinite: check that the probabilities number the "
                "classes as the labels do, and that the rows are in the same order."
            )
        root = root_scalar(slope, bracket=(hottest, coldest), xtol=1e-12).root
        return cls(float(np.exp(-root)), len(scores))

    def apply(
        self,
        probabilities: ArrayLike | None = None,
        *,
        logits: ArrayLike | None = None,
    ) -> np.ndarray:
        """Compute probabilities at this temperature.

        **Shapes**: all ``(*rows, classes)``.

        Args:
            probabilities: Predictive probabilities, averaged over draws.
            logits: Unnormalised log probabilities, instead of probabilities.

        Returns:
            Probabilities in double precision.

        Raises:
            ValueError: If both or neither are given, or if they are invalid.
        """
        return softmax(_logits(probabilities, logits) / self.temperature, axis=-1)


def _logits(probabilities: ArrayLike | None, logits: ArrayLike | None) -> np.ndarray:
    if probabilities is not None and logits is None:
        with np.errstate(divide="ignore"):
            return np.log(_check.class_probabilities("probabilities", probabilities))
    if logits is None or probabilities is not None:
        raise ValueError("pass either probabilities or logits.")
    array = _check.finite_array("logits", logits)
    if array.ndim == 0 or array.shape[-1] < 2:
        raise ValueError(
            "logits need at least two classes along the last axis, got the shape "
            f"{array.shape}; for a binary outcome pass "
            "`np.stack([np.zeros_like(logit), logit], axis=-1)`."
        )
    return array
