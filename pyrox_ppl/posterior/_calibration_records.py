"""What calibration finds: a record for numbers, one for classes, one for angles."""

import dataclasses
from typing import Any

import numpy as np

from pyrox_ppl.scores import CalibrationError, ReliabilityCurve


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """How predictions and observations of numbers agree.

    Attributes:
        site: The observed site.
        outcome: ``"continuous"``, ``"count"`` or ``"multivariate"``; every entry of a
            vector counts as an observation of its own, except in `energy_score`.
        levels: Probabilities of the central predictive intervals.
        coverage: The share of observations inside each of them.
        pit: Probability integral transforms, uniform on [0, 1] if the predictions are
            calibrated; their shape is that of the observations.
        crps: Continuous ranked probability score of every observation, in units of the
            observation; smaller is better.
        elpd: Expected log predictive density, summed over the observations, in nats;
            None where the tree has no ``log_likelihood``.
        elpd_se: Its standard error; None for a single observation.
        energy_score: The score of every vector of a multivariate outcome, in units of
            the observation; smaller is better. None for other outcomes, and where a
            mask hides entries of vectors.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(y=None):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(mean, 1.0).expand([2]), obs=y)
        >>> draws = {"mean": jnp.zeros(100)}
        >>> tree = px.to_datatree(draws, y=jnp.array([0.0, 9.0]), model=model)
        >>> px.calibration(tree).coverage  # no interval reaches up to 9
        (0.5, 0.5, 0.5, 0.5)
    """

    site: str
    outcome: str
    levels: tuple[float, ...]
    coverage: tuple[float, ...]
    pit: np.ndarray
    crps: np.ndarray
    elpd: float | None
    elpd_se: float | None
    energy_score: np.ndarray | None = None

    def __getattr__(self, name: str) -> Any:
        raise _refusal(self, name, "whose values are no classes")

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        lines = [f"{self.site} ({self.outcome}): {self.pit.size} observations"]
        lines += [
            f"  {100 * level:g} % interval covers {100 * covered:.1f} %"
            for level, covered in zip(self.levels, self.coverage, strict=True)
        ]
        lines.append(f"  mean CRPS {self.crps.mean():.4g}")
        if self.energy_score is not None:
            lines.append(f"  mean energy score {self.energy_score.mean():.4g}")
        return "\n".join([*lines, *_elpd_line(self.elpd, self.elpd_se)])


@dataclasses.dataclass(frozen=True, eq=False)
class ClassCalibration:
    """How class probabilities and observed classes agree.

    Attributes:
        site: The observed site.
        outcome: ``"binary"`` or ``"categorical"``.
        accuracy: The share of observations whose class is the most probable one.
        confidence: The mean probability of that class, which is the accuracy if the
            predictions are calibrated: above it they are over-confident.
        direction: ``"over-confident"`` or ``"under-confident"`` where the two differ by
            more than two standard errors of their difference, else ``""``.
        brier: Brier score of every observation, in [0, 1] for a binary outcome and in
            [0, 2] for a categorical one; smaller is better.
        calibration_error: Expected calibration error, with the bins it depends on.
        reliability: The reliability curve in the same bins.
        elpd: Expected log predictive density, summed over the observations, in nats;
            None where the tree has no ``log_likelihood``.
        elpd_se: Its standard error; None for a single observation.
        rps: Ranked probability score of every observation where the classes are
            ordered, else None; smaller is better.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(y=None):
        ...     p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        ...     numpyro.sample("y", dist.Bernoulli(p).expand([4]), obs=y)
        >>> draws = {"p": jnp.full(100, 0.75)}
        >>> tree = px.to_datatree(draws, y=jnp.array([1, 1, 1, 0]), model=model)
        >>> print(px.calibration(tree))
        y (binary): 4 observations
          accuracy 75.0 %, mean confidence 75.0 %
          mean Brier score 0.1875
          ECE 0.0000 (15 bins of equal width)
          ELPD -2.2 ± 1.0 nats
    """

    site: str
    outcome: str
    accuracy: float
    confidence: float
    direction: str
    brier: np.ndarray
    calibration_error: CalibrationError
    reliability: ReliabilityCurve
    elpd: float | None
    elpd_se: float | None
    rps: np.ndarray | None = None

    def __getattr__(self, name: str) -> Any:
        raise _refusal(self, name, "whose values are names of classes, not numbers")

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        lines = [
            f"{self.site} ({self.outcome}): {self.brier.size} observations",
            f"  {f'{self.direction}: ' if self.direction else ''}accuracy "
            f"{100 * self.accuracy:.1f} %, mean confidence "
            f"{100 * self.confidence:.1f} %",
            f"  mean Brier score {self.brier.mean():.4g}",
            f"  {self.calibration_error}",
        ]
        if self.rps is not None:
            lines.append(f"  mean ranked probability score {self.rps.mean():.4g}")
        return "\n".join([*lines, *_elpd_line(self.elpd, self.elpd_se)])


@dataclasses.dataclass(frozen=True, eq=False)
class CircularCalibration:
    """How predictions and observations of angles agree.

    An angle has neither a smallest value nor a distance along the line, so it has no
    intervals, PIT or CRPS.

    Attributes:
        site: The observed site.
        outcome: ``"circular"``.
        elpd: Expected log predictive density, summed over the observations, in nats.
        elpd_se: Its standard error; None for a single observation.
    """

    site: str
    outcome: str
    elpd: float | None
    elpd_se: float | None

    def __getattr__(self, name: str) -> Any:
        raise _refusal(self, name, "whose values are angles")

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        lines = [f"{self.site} (circular)", *_elpd_line(self.elpd, self.elpd_se)]
        return "\n".join(lines)


def _refusal(record: Any, name: str, why: str) -> AttributeError:
    """Say why a record lacks an attribute, and what it has."""
    if name.startswith("_"):
        return AttributeError(name)
    known = vars(record)
    about = ("site", "outcome")
    has = [key for key in known if key not in about and known[key] is not None]
    return AttributeError(
        f"calibration of {known.get('site')!r}, {why}, has no {name!r}; it has "
        f"{', '.join(has)}.",
        name=name,
        obj=record,
    )


def _elpd_line(elpd: float | None, elpd_se: float | None) -> list[str]:
    if elpd is None:
        return []
    if np.isneginf(elpd):
        return [
            "  ELPD -inf nats: an observation has a density of zero under every draw",
            "    (is it in the support of the distribution?)",
        ]
    error = "" if elpd_se is None else f" ± {elpd_se:.1f}"
    return [f"  ELPD {elpd:.1f}{error} nats"]
