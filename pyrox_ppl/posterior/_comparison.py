"""Comparison: scores of several methods on the same observations, in pairs."""

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pyrox_ppl._table import as_html, as_text


class Difference(NamedTuple):
    """A score minus that of a reference on the same rows.

    Attributes:
        value: The difference.
        se: Its paired standard error; NaN if there is a single row, or if a score is
            infinite.
    """

    value: float
    se: float


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """One score of all methods that have it.

    Attributes:
        name: Its name, such as ``"crps"``.
        label: Its name in a table, with its unit.
        goal: ``"larger"`` or ``"smaller"`` is better; for a coverage the probability
            that it should be.
        value: The score of each method.
        influence: What each row adds to it, ``(rows,)``: its share of a sum or a mean,
            and the first-order share of a root mean square or a calibration error.
    """

    name: str
    label: str
    goal: str | float
    value: dict[str, float]
    influence: dict[str, np.ndarray]

    def in_order(self, methods: Sequence[str]) -> "Score":
        """The same score with its methods in another order."""
        value = {name: self.value[name] for name in methods if name in self.value}
        return dataclasses.replace(self, value=value)

    def best(self) -> str:
        """The method that scores best; of equals the first."""
        if self.goal == "larger":
            return max(self.value, key=self.value.__getitem__)
        goal = 0.0 if isinstance(self.goal, str) else self.goal
        return min(self.value, key=lambda method: abs(self.value[method] - goal))

    def are_equal(self, method: str, other: str) -> bool:
        """Whether all rows are equal, but for rounding; also if both lack the score."""
        pair = [self.influence.get(name, np.array(np.nan)) for name in (method, other)]
        return np.allclose(*pair, rtol=1e-9, atol=0, equal_nan=True)

    def difference(self, method: str, reference: str) -> Difference:
        """The score of a method minus that of the reference."""
        a, b = self.influence[method], self.influence[reference]
        if self.are_equal(method, reference):
            return Difference(0.0, 0.0 if a.size > 1 else math.nan)
        # Minus infinity less itself has no value.
        with np.errstate(invalid="ignore"):
            value = self.value[method] - self.value[reference]
            spread = np.std(a - b, ddof=1) if a.size > 1 else math.nan
        return Difference(float(value), float(np.sqrt(a.size) * spread))


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Methods side by side on the same observations; it prints as a table.

    Attributes:
        site: The observed site.
        outcome: The kind of its outcome.
        observations: The number of its observed values.
        methods: The names of the methods, the best by the first score first.
        scores: The scores by their names, the first the one that ranks.
        draws: The number of predictive draws of each method.
        cost: ``seconds`` and ``gradient_evaluations`` of each method whose tree has
            them among its ``attrs``.
        notes: What else to know: methods that are equal, scores that are missing.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import pyrox_ppl as px
        >>> def model(y=None):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", 3):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = jnp.array([0.0, 1.0, 2.0])
        >>> def tree(mean):
        ...     return px.to_datatree({"mean": jnp.full(500, mean)}, y=y, model=model)
        >>> comparison = px.compare({"zero": tree(0.0), "one": tree(1.0)})
        >>> comparison.methods
        ('one', 'zero')
        >>> value, se = comparison.difference("elpd")["zero"]
        >>> round(value, 2), round(se, 2)
        (-1.5, 1.73)
    """

    site: str
    outcome: str
    observations: int
    methods: tuple[str, ...]
    scores: dict[str, Score]
    draws: dict[str, int]
    cost: dict[str, dict[str, float | int]]
    notes: tuple[str, ...]

    def difference(
        self, score: str, reference: str | None = None
    ) -> dict[str, Difference]:
        r"""The differences of a score to a reference, with paired standard errors.

        The standard error of a difference of sums over n rows is :math:`\sqrt n` times
        the standard deviation of the differences by row, which leaves out what is hard
        or easy for all methods; for means, root mean squares and calibration errors
        likewise, to first order. It takes rows to be independent, and is too small if
        there are few.

        Args:
            score: The name of a score, such as ``"elpd"`` or ``"crps"``.
            reference: The method to compare with; by default the best by this score.

        Returns:
            A `Difference`, ``(value, se)``, for every method that has the score.

        Raises:
            ValueError: If the comparison has no such score or the score no such method.
        """
        if score not in self.scores:
            raise ValueError(
                f"there is no score {score!r}; of this {self.outcome} outcome there "
                f"are {list(self.scores)}."
            )
        chosen = self.scores[score]
        reference = chosen.best() if reference is None else reference
        if reference not in chosen.value:
            raise ValueError(
                f"{reference!r} has no {score}; these have: {list(chosen.value)}."
            )
        return {
            method: chosen.difference(method, reference)
            for method in self.methods
            if method in chosen.value
        }

    def __str__(self) -> str:
        return "\n".join(
            [self._title(), "", as_text(*self._table()), "", *self._remarks()]
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title = html.escape(self._title())
        remarks = "<br>".join(map(html.escape, self._remarks()))
        return f"<p>{title}</p>{as_html(*self._table())}<p>{remarks}</p>"

    def _title(self) -> str:
        return f"{self.site}: {self.observations:,} observations, {self.outcome}"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        first, *others = self.scores.values()
        differences = self.difference(first.name)
        costs = [c for c in COSTS if any(c in cost for cost in self.cost.values())]
        header = ["method", first.label, "difference"]
        header += [score.label for score in others]
        header += ["draws", *(cost.replace("_", " ") for cost in costs)]
        rows = []
        for method in self.methods:
            row = [method, _number(first.value.get(method), first.name)]
            is_best = method == first.best()
            difference = differences.get(method)
            row.append("best" if is_best else _plus_minus(difference, first.name))
            row += [_number(s.value.get(method), s.name) for s in others]
            row.append(f"{self.draws[method]:,}")
            found = (self.cost[method].get(cost) for cost in costs)
            row += [_MISSING if cost is None else f"{cost:,.4g}" for cost in found]
            rows.append(row)
        return header, rows

    def _remarks(self) -> Sequence[str]:
        first = next(iter(self.scores.values()))
        about = f"difference: to {first.best()}, ± its paired standard error"
        goals = [
            f"{score.label.partition(' /')[0]}: {score.goal} is better"
            for score in self.scores.values()
            if isinstance(score.goal, str)
        ]
        return [about, "; ".join(goals), *self.notes]


# The attributes of a tree that say what its draws cost.
COSTS = ("seconds", "gradient_evaluations")
_MISSING = "-"


def _number(value: float | None, score: str) -> str:
    if value is None:
        return _MISSING
    if score == "elpd":
        return f"{value:.1f}"
    return (
        f"{value:.3f}" if score in ("coverage", "accuracy", "ece") else f"{value:.4g}"
    )


def _plus_minus(difference: Difference | None, score: str) -> str:
    if difference is None:
        return _MISSING
    value, error = (_number(part, score) for part in difference)
    if difference == (0, 0):
        return "0 ± 0"
    return value if math.isnan(difference.se) else f"{value} ± {error}"
