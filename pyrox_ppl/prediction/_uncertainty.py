"""Uncertainty of outcomes in two parts: their noise, and disagreement of the draws."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import entr as device_entropy
from scipy.special import entr

from pyrox_ppl.prediction._outcome import (
    class_probabilities,
    mean_and_variance,
    outcome_of,
)


class Uncertainty(NamedTuple):
    r"""How uncertain each value of a site is, in two parts that sum to the total.

    Of classes, entropies in nats:

    .. math::
        H\big(\tfrac1S \textstyle\sum_s p_s\big)
        = \tfrac1S \textstyle\sum_s H(p_s) + I(y; \theta)

    Of numbers, variances in squared units of the outcome, by the law of total variance:

    .. math::
        \operatorname{Var}[y] = \tfrac1S \textstyle\sum_s \operatorname{Var}[y \mid
        \theta_s] + \operatorname{Var}_s[\operatorname{E}[y \mid \theta_s]]

    Attributes:
        total: The uncertainty of the prediction.
        aleatoric: The mean over the draws of what each leaves uncertain: noise.
        epistemic: The rest, by which the draws differ: more data reduce it. Of classes
            it is the mutual information of label and parameters.
    """

    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray


def law_at_draw(fn: dist.Distribution) -> dict[str, jax.Array]:
    """What a site's distribution says at one draw, for `LawMeans`.

    Returns:
        Of classes their ``probability`` and its ``entropy``; of numbers ``mean`` and
        ``variance``; nothing where these have no meaning or NumPyro has no formula.
    """
    outcome = outcome_of(fn)
    if outcome is None or outcome.kind in ("circular", "multivariate"):
        return {}
    if outcome.num_classes is None:
        moments = mean_and_variance(fn)
        return {} if moments is None else {"mean": moments[0], "variance": moments[1]}
    # Rounding can put exp(log p) above 1, where 1 - p has no logarithm.
    p = jnp.clip(class_probabilities(fn), 0.0, 1.0)
    if outcome.kind == "binary":
        return {"probability": p, "entropy": device_entropy(p) + device_entropy(1 - p)}
    return {"probability": p, "entropy": device_entropy(p).sum(-1)}


class LawMeans:
    """Means over the draws of what the distributions of sites say, chunk by chunk.

    Sums are in double precision on the host: draws x rows x classes is never held.

    Attributes:
        number: The number of draws that were added.
    """

    def __init__(self) -> None:
        self.number = 0
        self._sums: dict[str, dict[str, np.ndarray]] = {}
        self._first: dict[str, np.ndarray] = {}

    def add(self, laws: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Add the laws of some draws, with a leading axis of draws."""
        self.number += max(
            (len(v) for law in laws.values() for v in law.values()), default=0
        )
        for name, law in laws.items():
            sums = self._sums.setdefault(name, {})
            for part, values in law.items():
                if part != "mean":
                    _add(sums, part, values.sum(0, dtype=np.float64))
                    continue
                # Squares of differences from the first draw, because those of large
                # values would leave no digits of their spread.
                first = self._first.setdefault(name, values[0].astype(np.float64))
                with np.errstate(invalid="ignore"):
                    shifted = values - first
                _add(sums, "shifted", shifted.sum(0))
                _add(sums, "square", np.square(shifted, out=shifted).sum(0))

    @property
    def names(self) -> list[str]:
        """The sites."""
        return list(self._sums)

    @property
    def probabilities(self) -> dict[str, np.ndarray]:
        """The posterior mean of the class probabilities, for each site of classes."""
        return {
            name: np.asarray(sums["probability"] / self.number)
            for name, sums in self._sums.items()
            if "probability" in sums
        }

    @property
    def means(self) -> dict[str, np.ndarray]:
        """The posterior mean of the mean, for each site of numbers."""
        return {
            name: np.asarray(first + self._sums[name]["shifted"] / self.number)
            for name, first in self._first.items()
        }

    def uncertainty(self, name: str) -> Uncertainty | None:
        """The parts of a site's uncertainty; None where there is no formula for it."""
        sums = {
            part: np.asarray(s / self.number)
            for part, s in self._sums.get(name, {}).items()
        }
        if "square" in sums:
            with np.errstate(invalid="ignore"):
                epistemic = np.maximum(sums["square"] - sums["shifted"] ** 2, 0.0)
            variance = sums["variance"]
            return _parts(variance + epistemic, variance, epistemic)
        if "probability" not in sums:
            return None
        p, aleatoric = sums["probability"], sums["entropy"]
        is_binary = p.shape == aleatoric.shape
        total = entr(p) + entr(1 - p) if is_binary else entr(p).sum(-1)
        # Draws are in single precision: their mean entropy may exceed the total by it.
        single = self.number == 1
        aleatoric = total if single else np.minimum(aleatoric, total)
        return _parts(total, aleatoric, total - aleatoric)


def _parts(*arrays: Any) -> Uncertainty:
    return Uncertainty(*map(np.asarray, arrays))


def _add(sums: dict[str, np.ndarray], part: str, value: Any) -> None:
    sums[part] = np.asarray(sums.get(part, 0.0) + value)
