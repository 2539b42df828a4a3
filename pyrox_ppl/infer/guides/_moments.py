"""The moments of the iterates of an optimiser, collected one by one, and draws of them.

A location is a dictionary of unconstrained values by site. The moments are a dictionary
of arrays, so that a ``mutable`` site can hold them:

- ``count``: the number n of iterates that were collected;
- ``mean``: their mean, by site;
- ``squares``: the sum of the squared distances from it;
- ``deviations``: the last iterates minus the mean at their time, along the first axis;
- ``steps``: the number of iterates that were seen, collected or not;
- ``last``: the last of them.

The last two are needed only to collect more.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

Location = dict[str, jax.Array]
Moments = dict[str, Any]

_KEPT = ("count", "mean", "squares", "deviations")


def no_moments(location: Location, rank: int) -> Moments:
    """The moments before the first step from a location."""
    zeros = {name: jnp.zeros_like(value) for name, value in location.items()}
    return {
        "steps": jnp.zeros((), jnp.int32),
        "last": dict(location),
        "count": jnp.zeros((), jnp.int32),
        "mean": zeros,
        "squares": dict(zeros),
        "deviations": {
            name: jnp.zeros((rank, *value.shape), value.dtype)
            for name, value in location.items()
        },
    }


def can_collect(moments: Moments) -> bool:
    """Whether a run still collects; the moments of a finished fit are not changed."""
    return "steps" in moments


def without_history(moments: Moments) -> Moments:
    """The moments of a finished fit."""
    return {name: moments[name] for name in _KEPT}


def add_iterate(
    moments: Moments, location: Location, *, start: int, every: int
) -> Moments:
    r"""Add a location to the moments if it is new and its turn has come.

    The sums are Welford's: with :math:`\delta = \theta - \bar\theta_{n-1}`,

    .. math:: \bar\theta_n = \bar\theta_{n-1} + \delta / n, \qquad
              S_n = S_{n-1} + \delta (\theta - \bar\theta_n).

    The second moment of the paper, less the squared mean, would lose its digits: in
    single precision the spread of a weight along a run is lost in the weight's square.

    Raises:
        ValueError: If the moments are those of other sites.
    """
    if moments["mean"].keys() != location.keys():
        raise ValueError(
            f"these moments are of the sites {sorted(moments['mean'])}, and this "
            f"AutoSWAG has {sorted(location)}: each AutoSWAG of an AutoGuideList "
            "needs a prefix of its own."
        )
    last, mean, deviations = moments["last"], moments["mean"], moments["deviations"]
    # A step that was left out because its loss was not finite leaves the location as it
    # is, and so do the first call of a guide and a loss that is only evaluated.
    moved = jnp.any(jnp.stack([jnp.any(location[n] != last[n]) for n in location]))
    steps = moments["steps"] + moved
    taken = moved & (steps > start) & ((steps - start) % every == 0)
    count = moments["count"] + taken
    number = jnp.maximum(count, 1)
    new: dict[str, dict[str, Any]] = {"mean": {}, "squares": {}, "deviations": {}}
    for name, value in location.items():
        before = value - mean[name]
        new["mean"][name] = mean[name] + jnp.where(taken, before / number, 0)
        after = value - new["mean"][name]
        squares = jnp.where(taken, before * after, 0)
        new["squares"][name] = moments["squares"][name] + squares
        columns = deviations[name]
        if len(columns):
            # One column is always written: a conditional would copy all of them where
            # it is vectorised over the members of an ensemble.
            slot = (number - 1) % len(columns)
            column = jnp.where(taken, after, columns[slot])
            columns = columns.at[slot].set(column)
        new["deviations"][name] = columns
    return {"steps": steps, "last": dict(location), "count": count, **new}


def check_sites(moments: Moments, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise unless the moments are of sites with these shapes, unconstrained."""
    found = {name: jnp.shape(mean) for name, mean in moments["mean"].items()}
    if found != shapes:
        raise ValueError(
            f"params has moments of the sites {found}, and the guide's model has "
            f"{shapes}: pass the params that were trained with this guide."
        )


def check_count(moments: Moments, rank: int, when: str) -> None:
    """Raise if too few iterates were collected, where the number is known.

    Args:
        moments: The moments.
        rank: The number of deviations in the covariance.
        when: Which iterates are collected, as an error shows it.
    """
    least = max(rank, 2)
    if isinstance(moments["count"], Tracer):
        return
    count = int(moments["count"])
    if count >= least:
        return
    smaller = f", or pass rank={count}" if count > 1 else ""
    raise ValueError(
        f"AutoSWAG collected {count} iterates with {when}, and needs {least} for "
        f"rank={rank}: take more steps{smaller}. With held-out data, the fit is that "
        "of the best epoch and holds the iterates until then."
    )


@functools.partial(jax.jit, static_argnames="rank")
def marginal_scale(moments: Moments, rank: int) -> Location:
    """The standard deviation of every entry."""
    diagonal, columns = _factors(moments, rank)
    return {
        name: jnp.sqrt(diagonal[name] ** 2 + jnp.sum(columns[name] ** 2, axis=0))
        for name in diagonal
    }


@functools.partial(jax.jit, static_argnames="rank")
def draw_location(rng_key: jax.Array, moments: Moments, rank: int) -> Location:
    """Draw a location from the normal distribution with these moments."""
    diagonal, columns = _factors(moments, rank)
    shared, *keys = jax.random.split(rng_key, 1 + len(diagonal))
    # One weight for each deviation, the same at every site: sites are correlated.
    weights = jax.random.normal(shared, (rank,))
    drawn = {}
    for key, (name, mean) in zip(keys, sorted(moments["mean"].items()), strict=True):
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        joint = jnp.tensordot(weights.astype(mean.dtype), columns[name], axes=1)
        drawn[name] = mean + diagonal[name] * noise + joint
    return drawn


def _factors(moments: Moments, rank: int) -> tuple[Location, Location]:
    """The scale of independent noise, and the columns of the low-rank factor.

    Both are NaN where fewer than two iterates were collected.
    """
    count = moments["count"]
    share = 0.5 if rank else 1.0
    diagonal = {
        name: jnp.sqrt(jnp.where(count > 1, share * squares / count, jnp.nan))
        for name, squares in moments["squares"].items()
    }
    columns = {}
    for name, deviations in moments["deviations"].items():
        # Columns that were not filled yet are zero.
        slots = (count - 1 - jnp.arange(rank)) % max(len(deviations), 1)
        used = jnp.minimum(count, rank).astype(deviations.dtype)
        columns[name] = deviations[slots] / jnp.sqrt(2 * (used - 1))
    return diagonal, columns
