"""What a run cost: kept with its result, and read from it."""

from typing import Any, NamedTuple

from numpyro.infer import MCMC
from numpyro.infer.svi import SVIRunResult

# The attribute of an MCMC object that holds the last states of runs and their costs:
# those of the run that it holds, and of the warm-up that this started from.
_KEPT = "_pyrox_ppl_costs"


class Cost(NamedTuple):
    """What a run cost; None is unknown.

    Attributes:
        seconds: The time of its steps, compilation included, over all processes.
        gradient_evaluations: How many gradients of the log density, or of one particle
            of a loss, were computed: a leapfrog step needs one.
    """

    seconds: float | None = None
    gradient_evaluations: int | None = None

    def plus(self, other: "Cost") -> "Cost":
        """The cost of both; unknown where one is."""
        numbers: Any = zip(self, other, strict=True)
        return Cost(*(None if None in pair else sum(pair) for pair in numbers))

    def known(self) -> dict[str, Any]:
        """What is known of it, by name."""
        return {n: value for n, value in self._asdict().items() if value is not None}


class CountedSVIResult(SVIRunResult):
    """NumPyro's ``SVIRunResult``, with what the run cost.

    Attributes:
        seconds: As in :class:`Cost`.
        gradient_evaluations: As in :class:`Cost`.
    """

    seconds: float | None = None
    gradient_evaluations: int | None = None

    @classmethod
    def make(cls, *fields: Any, cost: Cost) -> "CountedSVIResult":
        """The result with these fields."""
        result = cls(*fields)
        vars(result).update(cost._asdict())
        return result


def replace_params(fit: Any, params: dict[str, Any]) -> Any:
    """A result of SVI with other params, which cost what it did."""
    replaced = fit._replace(params=params)
    if isinstance(fit, CountedSVIResult):
        return CountedSVIResult.make(*replaced, cost=cost_of(fit))
    return replaced


def gradients_of_svi(svi: Any, num_steps: int) -> int:
    """How many gradients SVI computes: one for each step and particle."""
    return num_steps * getattr(svi.loss, "num_particles", 1)


def leapfrog_steps(state: Any) -> Any:
    """The leapfrog steps of the iteration that led to a kernel's state, or None."""
    return getattr(getattr(state, "hmc_state", state), "num_steps", None)


def keep_cost(mcmc: MCMC, cost: Cost) -> None:
    """Keep the cost of the run that filled an MCMC object, its warm-up included."""
    start, runs = mcmc.post_warmup_state, vars(mcmc).get(_KEPT, [])
    before = [run for run in runs if start is not None and run[0] is start]
    if before:
        cost = cost.plus(before[0][1])
    elif start is not None:
        cost = Cost()
    vars(mcmc)[_KEPT] = [*before, (mcmc.last_state, cost)]


def cost_of(result: Any) -> Cost:
    """The cost of a result of SVI, or of the run that an MCMC object holds."""
    if not isinstance(result, MCMC):
        return Cost(*(getattr(result, name, None) for name in Cost._fields))
    # NumPyro's own ``run`` may have filled the object again.
    found = [run for run in vars(result).get(_KEPT, []) if run[0] is result.last_state]
    return found[-1][1] if found else Cost()
