"""calibration: whether predictions are as often right as they say, by the outcome."""

from collections.abc import Sequence

import jax
import numpy as np
import xarray as xr

from pyrox_ppl import scores
from pyrox_ppl.posterior._calibration_records import (
    Calibration,
    CircularCalibration,
    ClassCalibration,
)
from pyrox_ppl.posterior._observed import CLASSES
from pyrox_ppl.posterior._site_predictions import SitePredictions
from pyrox_ppl.scores._reliability import Binning

_LEVELS = (0.5, 0.8, 0.9, 0.95)


def calibration(
    tree: xr.DataTree,
    site: str | None = None,
    *,
    outcome: str | None = None,
    levels: Sequence[float] | None = None,
    bins: int | None = None,
    binning: Binning | None = None,
    seed: int = 0,
) -> Calibration | ClassCalibration | CircularCalibration:
    r"""Compare predictive draws with what was observed.

    Held-out data say most: ``px.to_datatree(tree, x_test, y=y_test, model=model)``
    makes a tree of them from the draws of another tree. What is compared depends on the
    outcome's distribution in the model:

    - continuous, count: coverage of central intervals, PIT, CRPS, ELPD;
    - multivariate: the same for every entry, and the energy score of the vectors;
    - binary, categorical: accuracy and mean confidence (called over- or under-confident
      where the two differ by more than two standard errors), Brier score, expected
      calibration error with its reliability curve, ELPD, and the ranked probability
      score of ordered classes. The probabilities are means over the draws of those that
      the model gives; renumbering the classes changes nothing;
    - circular: ELPD.

    With :math:`\tilde y_s` the S predictive draws of an observation y:

    - the PIT is :math:`(\#\{\tilde y_s < y\} + u (\#\{\tilde y_s = y\} + 1)) / (S +
      1)`, u uniform, which is exactly uniform for discrete data as well;
    - the CRPS is :math:`\frac1S \sum_s |\tilde y_s - y| - \frac1{2 S^2} \sum_{s,t}
      |\tilde y_s - \tilde y_t|`;
    - the ELPD is :math:`\sum_i \log \frac1S \sum_s p(y_i \mid \theta_s)`.

    Args:
        tree: A DataTree with ``posterior_predictive`` and ``observed_data``.
        site: The observed site; may be left out if there is one.
        outcome: The kind of outcome, as :func:`~pyrox_ppl.to_datatree` names them;
            needed where a tree does not say whether integers are counts or classes.
        levels: Probabilities of the central intervals; (0.5, 0.8, 0.9, 0.95) if None.
        bins: The number of bins of the calibration error of classes; 15 if None.
        binning: ``"equal_width"`` (if None) or ``"equal_mass"``.
        seed: The seed of the uniform numbers that break ties in the PIT.

    Returns:
        A `Calibration`, `ClassCalibration` or `CircularCalibration`; ``print`` it for a
        summary. An attribute without a meaning for the outcome, such as the ``crps`` of
        classes, raises an AttributeError that names the others.

    Raises:
        TypeError: If `tree` is not a DataTree.
        ValueError: If the tree lacks the groups or the site; if there is no
            observation; if an observation or a predictive draw is not finite, or a log
            likelihood is NaN; if a level is not strictly between 0 and 1; if integers
            may be counts or classes; if `levels` is given for classes, or `bins` or
            `binning` for numbers; if a label is no class.

    References:
        Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and
        Estimation", JASA 2007, equation 21. Dawid, "Statistical Theory: The Prequential
        Approach", JRSS A 1984 (PIT). Brier, "Verification of
        forecasts expressed in terms of probability", Monthly Weather Review 1950.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(y=None):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", 200):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = jax.random.normal(jax.random.key(1), (200,))
        >>> tree = px.to_datatree({"mean": jnp.zeros(400)}, y=y, model=model)
        >>> scores = px.calibration(tree, levels=(0.9,))
        >>> 0.85 < scores.coverage[0] < 0.95
        True
    """
    predictions = SitePredictions.read(tree, site, "calibration", outcome)
    site, kind = predictions.site, predictions.outcome
    if levels is not None and np.ndim(levels) != 1:
        raise ValueError(
            f"levels are several probabilities, such as (0.5, 0.9); got {levels!r}."
        )
    asked = [] if levels is None else list(levels)
    wrong = [p for p in asked if isinstance(p, str) or not 0.0 < p < 1.0]
    if wrong:
        raise ValueError(f"levels are probabilities in (0, 1), got {wrong}.")
    is_classes = kind in CLASSES
    if levels is not None and (is_classes or kind == "circular"):
        raise ValueError(
            f"{site!r} is {kind}: it has no intervals. Leave `levels` out."
        )
    if not is_classes and (bins is not None or binning is not None):
        raise ValueError(
            f"{site!r} is {kind}: bins are of class probabilities. Leave `bins` and "
            "`binning` out."
        )
    if is_classes:
        return _of_classes(
            predictions, 15 if bins is None else bins, binning or "equal_width"
        )
    y, draws = predictions.observed_and_draws()
    elpd, elpd_se = _elpd(predictions)
    if kind == "circular":
        return CircularCalibration(site, kind, elpd, elpd_se)
    levels = tuple(_LEVELS if levels is None else levels)
    intervals = [scores.central_interval(draws, level=level) for level in levels]
    return Calibration(
        site,
        kind,
        levels,
        tuple(float(scores.coverage(y, *bounds).mean()) for bounds in intervals),
        scores.pit(y, draws, rng_key=jax.random.key(seed)),
        scores.crps(y, draws, fair=False),
        elpd,
        elpd_se,
        _energy_score(predictions, y, draws) if kind == "multivariate" else None,
    )


def _of_classes(
    predictions: SitePredictions, bins: int, binning: Binning
) -> ClassCalibration:
    labels, probabilities = predictions.labels_and_probabilities()
    # One axis of rows: the entries of an event, such as pixels, are rows as well.
    y = labels.reshape(-1)
    p = probabilities.reshape(y.size, *probabilities.shape[labels.ndim :])
    brier = scores.brier_score(y, p).reshape(labels.shape)
    right = scores.accuracy(y, p)
    # A binary outcome has the probability of 1 alone.
    is_vector = p.ndim > 1
    confidence = p.max(-1) if is_vector else np.maximum(p, 1.0 - p)
    how = {"bins": bins, "binning": binning}
    ranked = scores.ranked_probability_score(y, p) if predictions.is_ordered else None
    return ClassCalibration(
        predictions.site,
        predictions.outcome,
        float(right.mean()),
        float(confidence.mean()),
        _direction(right - confidence),
        brier,
        scores.expected_calibration_error(y, p, **how),
        scores.reliability_curve(y, p, **how),
        *_elpd(predictions),
        None if ranked is None else ranked.reshape(labels.shape),
    )


def _direction(gaps: np.ndarray) -> str:
    """What accuracy minus confidence says, row by row, beyond two standard errors."""
    if gaps.size < 2 or abs(gaps.mean()) <= 2.0 * gaps.std(ddof=1) / np.sqrt(gaps.size):
        return ""
    return "under-confident" if gaps.mean() > 0 else "over-confident"


def _elpd(predictions: SitePredictions) -> tuple[float | None, float | None]:
    """The expected log predictive density of a site, and its standard error."""
    pointwise = predictions.log_scores()
    if pointwise is None:
        return None, None
    # An observation that is impossible at every draw has a log score of -inf.
    with np.errstate(invalid="ignore"):
        error = float(pointwise.std() * np.sqrt(pointwise.size))
    return float(pointwise.sum()), error if pointwise.size > 1 else None


def _energy_score(
    predictions: SitePredictions, y: np.ndarray, draws: np.ndarray
) -> np.ndarray | None:
    """The energy score of every vector; None where entries of vectors are hidden."""
    ndim = predictions.event_ndims()
    if y.ndim < ndim or predictions.hides_elements:
        return None
    rows = y.shape[: y.ndim - ndim]
    return scores.energy_score(
        y.reshape(*rows, -1), draws.reshape(len(draws), *rows, -1), fair=False
    )
