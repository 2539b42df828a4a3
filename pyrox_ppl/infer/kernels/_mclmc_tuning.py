"""The warm-up of MCLMC: its step size by the energy error, and its length L."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# The last tenths of a warm-up go to the spread of the posterior, and to the
# autocorrelation of the chain.
_SHARE = 0.1
# Energy errors of this many steps decide the step size, and count by how near they are
# to the desired one: by a factor of e^6 for a weight of 0.8.
_MEMORY, _TRUST = 100, 1.5
# The largest number of values whose autocorrelation is estimated.
_WINDOW = 1 << 18


class Tuning(NamedTuple):
    """What MCLMC adapts, and what it adapts it by.

    Attributes:
        step_size: The step size.
        L: The length over which the direction of the momentum is forgotten.
        inverse_mass_matrix: A scale of each coordinate, squared.
        limit: The largest step size, below those that diverged.
        weight: The total weight of the energy errors so far.
        average: Their weighted average, each over the sixth power of its step size.
        time: The length of the trajectory whose moments are taken.
        mean: The average position.
        variance: Its variance, of each coordinate.
        window: Successive positions at some of the coordinates.
    """

    step_size: jax.Array
    L: jax.Array
    inverse_mass_matrix: jax.Array
    limit: jax.Array
    weight: jax.Array
    average: jax.Array
    time: jax.Array
    mean: jax.Array
    variance: jax.Array
    window: jax.Array


class Step(NamedTuple):
    """A step of the sampler: its squared energy error is that per dimension."""

    z: jax.Array
    squared_error: jax.Array
    success: jax.Array


class Tuner:
    """The warm-up as MILE has it, one iteration at a time.

    In the first eight tenths the step size follows the energy error: as in BlackJAX's
    tuning, its variance grows with the sixth power of the step size, so that each error
    says which step size would give the desired variance. That falls from the first to
    the second of `energy_variance`. The next tenth measures the spread of the
    posterior, which is the first guess of L, and the last one the autocorrelation of
    the chain, which decides L.
    """

    def __init__(
        self,
        num_warmup: int,
        energy_variance: tuple[float, float],
        step_size: float | None,
        L: float | None,
        precondition: bool,
        effective_sample_size: Callable,
    ) -> None:
        self._desired = energy_variance
        self._step_size, self._length, self._precondition = step_size, L, precondition
        self._effective_sample_size = effective_sample_size
        last = round(_SHARE * num_warmup)
        self._end = num_warmup
        self._moments, self._correlation = num_warmup - 2 * last, num_warmup - last
        # A new scale needs a new step size, for which a third of the rest is kept.
        self._resettled = self._correlation + (last // 3 if precondition else 0)
        self._adapts = step_size is None
        self._measures = L is None or precondition

    def start(self, z: jax.Array) -> Tuning:
        """The values before the first iteration."""
        size, dtype = z.size, z.dtype
        rows = max(self._end - self._resettled, 0)
        columns = min(size, max(_WINDOW // max(rows, 1), 1)) if self._counts() else 0
        zero, root = jnp.zeros((), dtype), jnp.sqrt(jnp.asarray(size, dtype))
        return Tuning(
            step_size=_given(self._step_size, 0.25 * root),
            L=_given(self._length, root),
            inverse_mass_matrix=jnp.ones(size if self._precondition else (), dtype),
            limit=zero + jnp.inf,
            weight=zero,
            average=zero,
            time=zero,
            mean=jnp.zeros(size if self._measures else 0, dtype),
            variance=jnp.zeros(size if self._measures else 0, dtype),
            # The last row takes what comes before and after.
            window=jnp.zeros((rows + 1, columns), dtype),
        )

    def _counts(self) -> bool:
        """Whether the autocorrelation decides L."""
        return self._length is None and self._end - self._resettled >= 10

    def update(self, i: jax.Array, tuning: Tuning, step: Step) -> Tuning:
        """The values after iteration `i`."""
        if self._end == 0 or not (self._adapts or self._measures):
            return tuning
        window = tuning.window
        if self._counts():
            rows, columns = window.shape
            place = i - self._resettled
            place = jnp.where((place >= 0) & (i < self._end), place, rows - 1)
            chosen = (jnp.arange(columns) * step.z.size) // columns
            window = window.at[place].set(step.z[chosen])
            tuning = tuning._replace(window=window)
        small = tuning._replace(window=jnp.zeros(()))
        small = lax.cond(
            i < self._correlation if not self._precondition else i < self._resettled,
            lambda t: self._early(i, t, step),
            lambda t: t,
            small,
        )
        tuning = small._replace(window=window)
        if not self._counts():
            return tuning
        length = lax.cond(
            i == self._end - 1, self._correlated_length, lambda t: t.L, tuning
        )
        return tuning._replace(L=length)

    def _early(self, i: jax.Array, tuning: Tuning, step: Step) -> Tuning:
        if self._adapts:
            tuning = self._adapt_step_size(i, tuning, step)
        if not self._measures:
            return tuning
        counts = (i >= self._moments) & (i < self._correlation) & step.success
        duration = jnp.where(counts, tuning.step_size, 0.0)
        time = tuning.time + duration
        share = duration / jnp.maximum(time, jnp.finfo(time.dtype).tiny)
        # By deviations: the difference of mean squares is lost to rounding far from 0.
        deviation = step.z - tuning.mean
        tuning = tuning._replace(
            time=time,
            mean=tuning.mean + share * deviation,
            variance=(1 - share) * (tuning.variance + share * deviation**2),
        )
        return lax.cond(
            i == self._correlation - 1, self._spread_length, lambda t: t, tuning
        )

    def _adapt_step_size(self, i: jax.Array, tuning: Tuning, step: Step) -> Tuning:
        first, last = self._desired
        share = jnp.minimum(i / max(self._moments, 1), 1.0)
        desired = first + (last - first) * share
        ratio = step.squared_error / desired + 1e-8
        weight = jnp.exp(-0.5 * (jnp.log(ratio) / (6.0 * _TRUST)) ** 2)
        weight = jnp.where(step.success, weight, 0.0)
        keep = (_MEMORY - 1.0) / (_MEMORY + 1.0)
        total = keep * tuning.weight + weight
        average = keep * tuning.average + weight * ratio / tuning.step_size**6
        # A step that diverged sets a limit, which rises slowly as steps succeed again.
        limit = jnp.where(
            step.success, 1.01 * tuning.limit, 0.5 * tuning.step_size
        ).astype(tuning.limit.dtype)
        found = jnp.where(
            total > 0.0, (average / total) ** (-1.0 / 6.0), tuning.step_size
        )
        return tuning._replace(
            step_size=jnp.minimum(found, limit).astype(tuning.step_size.dtype),
            limit=limit,
            weight=total.astype(tuning.weight.dtype),
            average=average.astype(tuning.average.dtype),
        )

    def _spread_length(self, tuning: Tuning) -> Tuning:
        """L as the spread of the posterior; with scales, it is that of their units."""
        variance = tuning.variance
        spread = jnp.sqrt(jnp.sum(variance))
        # A few steps show no spread, and none that succeeded shows any.
        known = (spread > 0.0) & (self._correlation - self._moments >= 10)
        root = jnp.sqrt(jnp.asarray(variance.size, variance.dtype))
        # Below a step, all of the direction is forgotten.
        length = root if self._precondition else jnp.maximum(spread, tuning.step_size)
        length = jnp.where(known, length, tuning.L).astype(tuning.L.dtype)
        tuning = tuning if self._length is not None else tuning._replace(L=length)
        if not self._precondition:
            return tuning
        floor = 1e-12 * jnp.max(variance)
        scales = jnp.where(known, jnp.maximum(variance, floor), 1.0)
        zero = jnp.zeros_like(tuning.weight)
        step_size = jnp.where(known, tuning.step_size * root / spread, tuning.step_size)
        if self._adapts:
            tuning = tuning._replace(step_size=step_size)
        return tuning._replace(
            inverse_mass_matrix=scales, limit=zero + jnp.inf, weight=zero, average=zero
        )

    def _correlated_length(self, tuning: Tuning) -> jax.Array:
        """L by the autocorrelation of the chain; as it is where that is not known."""
        draws = tuning.window[:-1]
        ess = self._effective_sample_size(draws[None])
        times = len(draws) / ess
        known = jnp.isfinite(times) & (ess > 0)
        mean = jnp.sum(jnp.where(known, times, 0.0)) / jnp.maximum(known.sum(), 1)
        length = jnp.maximum(0.4 * mean, 1.0) * tuning.step_size
        length = jnp.where(known.any(), length, tuning.L)
        return length.astype(tuning.L.dtype)


def _given(value: Any, default: jax.Array) -> jax.Array:
    return default if value is None else jnp.asarray(value, default.dtype)
