"""recalibrate: predictions corrected by what held-out observations show."""

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

import jax
import numpy as np
import xarray as xr
from jaxtyping import PRNGKeyArray

import pyrox_ppl.scores as scores
from pyrox_ppl.posterior._site_predictions import SitePredictions
from pyrox_ppl.prediction._prediction import Prediction

type Method = Literal["temperature", "conformal", "cqr", "aps"]

_FITTED = MappingProxyType(
    {
        "temperature": scores.Temperature,
        "conformal": scores.ConformalInterval,
        "cqr": scores.ConformalInterval,
        "aps": scores.ConformalSets,
    }
)
_METHODS = MappingProxyType(
    {
        "binary": ("temperature", "aps"),
        "categorical": ("temperature", "aps"),
        "continuous": ("conformal", "cqr"),
        "count": ("conformal", "cqr"),
    }
)


@dataclasses.dataclass(frozen=True)
class Recalibration:
    """What was fitted to the held-out observations of a site.

    Attributes:
        site: The observed site.
        outcome: The kind of its outcome.
        method: ``"temperature"``, ``"conformal"``, ``"cqr"`` or ``"aps"``.
        fitted: A `scores.Temperature`, `scores.ConformalInterval` or
            `scores.ConformalSets`, which says what it guarantees.
        num_classes: The number of classes it was fitted to; None for numbers.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(y=None):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", 9):
        ...         numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)
        >>> draws, y = {"mean": jnp.zeros(9)}, jnp.arange(9.0)
        >>> tree = px.to_datatree(draws, y=y, model=model)
        >>> interval = px.recalibrate(tree, "conformal")
        >>> lower, upper = interval.apply(jnp.array([0.0, 100.0]))
        >>> bool((upper - lower > 15).all())  # the largest residual is near 8
        True
    """

    site: str
    outcome: str
    method: Method
    fitted: scores.Temperature | scores.ConformalInterval | scores.ConformalSets
    num_classes: int | None = None

    def apply(self, prediction: Any, *, rng_key: PRNGKeyArray | None = None) -> Any:
        """Correct later predictions.

        **Shapes**: as the prediction's; sets of classes ``(*rows, classes)``.

        Args:
            prediction: What :func:`~pyrox_ppl.predict` returned for the model, or one
                `Prediction`, or arrays: class probabilities for ``"temperature"`` and
                ``"aps"``, the mean for ``"conformal"``, and ``(lower, upper)``
                quantiles for ``"cqr"``.
            rng_key: The JAX PRNG key for the randomisation of ``"aps"``;
                ``jax.random.key(0)`` if not given.

        Returns:
            Probabilities for ``"temperature"``, ``(lower, upper)`` for ``"conformal"``
            and ``"cqr"``, and for ``"aps"`` whether each class is in the set.

        Raises:
            ValueError: If the prediction lacks the site or the quantiles, or is not
                valid.
        """
        if isinstance(prediction, Mapping):
            if self.site not in prediction:
                raise ValueError(
                    f"there is no prediction of {self.site!r}, only of "
                    f"{list(prediction)}."
                )
            prediction = prediction[self.site]
        fitted = self.fitted
        if isinstance(fitted, scores.ConformalInterval):
            return fitted.apply(*_bounds(prediction, self.method, fitted.level))
        mean = prediction.mean if isinstance(prediction, Prediction) else prediction
        p = _all_classes(np.asarray(mean), self.outcome)
        if self.num_classes is not None and p.shape[-1:] != (self.num_classes,):
            raise ValueError(
                f"the {self.method!r} recalibration of {self.site!r} was fitted to "
                f"{self.num_classes} classes, and the prediction has the shape "
                f"{np.shape(mean)}: its last axis must be those classes."
            )
        if isinstance(fitted, scores.ConformalSets):
            return fitted.apply(p, rng_key=_key(rng_key))
        tempered = fitted.apply(p)
        return tempered[..., 1] if self.outcome == "binary" else tempered

    def to_json(self) -> str:
        """Write it as text, for a file."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        fitted = _FITTED[fields["method"]](**fields.pop("fitted"))
        return cls(**fields, fitted=fitted)


def recalibrate(
    tree: xr.DataTree,
    method: Method,
    site: str | None = None,
    *,
    outcome: str | None = None,
    level: float | None = None,
    rng_key: PRNGKeyArray | None = None,
) -> Recalibration:
    """Fit a correction of predictions to held-out observations.

    - ``"temperature"``, for classes: one temperature for all probabilities, by the log
      score. No guarantee for a finite number of rows.
    - ``"aps"``, for classes: sets that hold the label with the probability `level`.
    - ``"conformal"``, for continuous outcomes and counts: the predictive mean and a
      margin on both sides, the same for all rows.
    - ``"cqr"``, for the same: a margin on the predictive quantiles at (1 ∓ `level`) /
      2, so that the intervals are wide where the predictions are uncertain.

    The last three cover new rows with the probability `level`, on average over held-out
    sets, for any model, however wrong, if held-out and new rows are exchangeable:
    `scores.ConformalInterval` and `scores.ConformalSets` state it in full. It does not
    hold on data that the posterior was fitted to, nor if later predictions are made in
    another way: predict with the same draws. Every value counts as a row, so it does
    not hold either where the values of one observation (pixels, several outputs) depend
    on each other.

    Args:
        tree: A tree of held-out data, which the posterior has not seen:
            ``px.to_datatree(tree, x_held_out, y=y_held_out, model=model)``.
        method: How to correct.
        site: The observed site; may be left out if there is one.
        outcome: The kind of the outcome, for a tree of others that does not say what
            its integers are.
        level: The probability to guarantee, 0.9 if not given; ``"temperature"`` has
            none.
        rng_key: The JAX PRNG key for the randomisation of ``"aps"``;
            ``jax.random.key(0)`` if not given.

    Returns:
        A `Recalibration`; its ``apply`` takes what :func:`~pyrox_ppl.predict` returns,
        and :func:`~pyrox_ppl.save` keeps it.

    Raises:
        TypeError: If `tree` is not a DataTree.
        ValueError: If the method is not one for the site's outcome; if `level` is given
            for a temperature or is not in (0, 1); if the rows are too few.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Romano,
        Patterson and Candès, "Conformalized Quantile Regression", NeurIPS 2019. Romano,
        Sesia and Candès, "Classification with Valid and Adaptive Coverage", NeurIPS
        2020.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(x, y=None):
        ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", x.shape[0]):
        ...         numpyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)
        >>> x = jnp.tile(jnp.array([-1.0, 1.0]), 50)
        >>> y = (jnp.arange(100) % 5 != 0) == (x > 0)  # right in four of five rows
        >>> draws = {"slope": jnp.full(10, 5.0)}
        >>> held_out = px.to_datatree(draws, x, y=y.astype(int), model=model)
        >>> tempered = px.recalibrate(held_out, "temperature")
        >>> tempered.apply(jnp.array([0.9933])).round(2)
        array([0.8])
    """
    predictions = SitePredictions.read(tree, site, "recalibrate", outcome)
    outcome = predictions.outcome
    known = _METHODS.get(outcome, ())
    if method not in known:
        advice = f"of those there are {list(known)}" if known else "there is none"
        raise ValueError(
            f"{method!r} is no recalibration of {outcome} outcomes such as "
            f"{predictions.site!r}: {advice}."
        )
    if method == "temperature":
        if level is not None:
            raise ValueError("a temperature guarantees no level: leave `level` out.")
        p = _held_out_probabilities(predictions)
        fitted = scores.Temperature.fit(predictions.observed(), p)
        return Recalibration(predictions.site, outcome, method, fitted, p.shape[-1])
    level = 0.9 if level is None else level
    if method == "aps":
        p = _held_out_probabilities(predictions)
        fitted = scores.ConformalSets.fit(
            predictions.observed(), p, level=level, rng_key=_key(rng_key)
        )
        return Recalibration(predictions.site, outcome, method, fitted, p.shape[-1])
    y, draws = predictions.observed_and_draws()
    if method == "cqr":
        lower, upper = scores.central_interval(draws, level=level)
    else:
        # Of the draws, as `predict` has it: the guarantee is for one way to predict.
        lower = upper = draws.mean(0, dtype=np.float64)
    fitted = scores.ConformalInterval.fit(y, lower, upper, level=level)
    return Recalibration(predictions.site, outcome, method, fitted)


def _bounds(prediction: Any, method: str, level: float) -> tuple[Any, Any]:
    """The bounds to which a margin is added."""
    if not isinstance(prediction, Prediction):
        return (prediction, prediction) if method == "conformal" else prediction
    if method == "conformal":
        return prediction.mean, prediction.mean
    tails = [round((1 - level) / 2, 12), round((1 + level) / 2, 12)]
    known = {round(q, 12): values for q, values in prediction.quantiles.items()}
    if not known.keys() >= set(tails):
        raise ValueError(
            f"the prediction has the quantiles {sorted(prediction.quantiles)}, and "
            f"intervals of level {level:g} need {tails}: predict(..., "
            f"quantiles={tuple(tails)})."
        )
    return known[tails[0]], known[tails[1]]


def _held_out_probabilities(predictions: SitePredictions) -> np.ndarray:
    """The probabilities that the model gives, which `predict` gives for new rows."""
    if not predictions.has_probabilities:
        raise ValueError(
            f"the tree has no class probabilities of {predictions.site!r}, only draws "
            "of classes: make it with the model, px.to_datatree(draws, x, y=y, "
            "model=model)."
        )
    return _all_classes(predictions.probabilities(), predictions.outcome)


def _all_classes(probabilities: np.ndarray, outcome: str) -> np.ndarray:
    """Probabilities of all classes along the last axis; a binary outcome has two."""
    if outcome != "binary":
        return probabilities
    return np.stack([1 - probabilities, probabilities], axis=-1)


def _key(rng_key: PRNGKeyArray | None) -> PRNGKeyArray:
    return jax.random.key(0) if rng_key is None else rng_key
