"""Refuse a model that takes the rows of a minibatch for all of the data."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpyro import handlers

from pyrox_ppl._dependence import abstract_trace, find_dependence, mark
from pyrox_ppl._full_data import MarkIndices, arrays_by_site, is_factor
from pyrox_ppl._layer_state import CopyState

_ROWS = "rows of the batch"


class _Batch(NamedTuple):
    """How many rows a batch has, and all data, and the lengths of its other axes."""

    size: int
    num_rows: int
    others: frozenset[int]

    @property
    def factor(self) -> float:
        """How often the likelihood of the batch must count."""
        return self.num_rows / self.size


def check_batch_scale(
    model: Callable, batch: tuple, num_rows: int, kwargs: dict[str, Any]
) -> None:
    """Refuse a model with an observed site that does not scale its rows up.

    Such a site depends on the batch, and neither a plate nor a handler scales it; or a
    plate of another number of rows does, or a plate and a handler both. Other scales of
    a handler pass: that of a tempered likelihood is not rows / batch rows.

    Args:
        model: The model.
        batch: Its arguments, the arrays of a batch.
        num_rows: The number of rows of all data.
        kwargs: Its keyword arguments.

    Raises:
        ValueError: If there is such a site.
    """
    others = frozenset(length for array in batch for length in jnp.shape(array)[1:])
    rows = _Batch(len(batch[0]), num_rows, others)
    if rows.size == num_rows:
        return
    trace: dict[str, dict[str, Any]] = {}

    def causes_and_sites() -> tuple[dict[str, Any], dict[str, Any]]:
        marked = tuple(map(mark, batch))
        # No handler outside sees this run, or loses a random number to it.
        indices = MarkIndices()
        with handlers.block(), CopyState(), indices:
            trace.update(abstract_trace(functools.partial(model, *marked, **kwargs)))
        sites = {name: site for name, site in trace.items() if _is_observed(site)}
        by_plate = {_of_plate(name): i for name, i in indices.by_plate.items()}
        return {_ROWS: marked, **by_plate}, arrays_by_site(sites)

    for name, causes in find_dependence(causes_and_sites).items():
        if _ROWS in causes:
            _check_site(trace[name], trace, causes, rows)


def scale_error(
    site: dict[str, Any], scale: float, size: int, num_rows: int, where: str = ""
) -> ValueError:
    """The error of a site whose scale does not make up for the rows it lacks."""
    advice = (
        "put it on a plate of all rows, "
        'numpyro.plate("row", loader.num_rows, subsample_size=len(x)), or under '
        "numpyro.handlers.scale(scale=loader.num_rows / len(x))"
    )
    if is_factor(site):
        advice += " in place of a number that multiplies the factor"
    return ValueError(
        f"the likelihood of a batch of {size} of {num_rows} rows must count "
        f"{num_rows / size:g} times, and the site {site['name']!r} has the scale "
        f"{scale:g}{where}: {advice}."
    )


def _check_site(
    site: dict[str, Any],
    trace: dict[str, dict[str, Any]],
    causes: set[str],
    rows: _Batch,
) -> None:
    """Check the scale of an observed site that depends on the rows of a batch.

    Raises:
        ValueError: If it is that of a mistake.
    """
    plates = _plates_of(site, trace)
    drawn = {name: args for name, args in plates.items() if args[0] != args[1]}
    for plate, (members, _) in drawn.items():
        is_of_rows = members == rows.num_rows and members not in rows.others
        if is_of_rows and _of_plate(plate) in causes:
            raise ValueError(
                f"the site {site['name']!r} takes the rows that the plate {plate!r} "
                f"draws, of {members}, from a batch of {rows.size}, which the loader "
                "has drawn already: take all rows of the batch, `x` in place of "
                "`x[indices]`."
            )
    scale = _number(site["scale"])
    if scale is None:
        return
    prior, latent = _scale_of_priors(trace, rows.size)
    by_handler = scale / prior / math.prod(one / few for one, few in drawn.values())
    # Where a plate holds all rows of the batch, another one holds parts of a row.
    has_whole = any(args == (rows.size, rows.size) for args in plates.values())
    by_rows = {
        plate: members / few
        for plate, (members, few) in drawn.items()
        if few % rows.size == 0 or not has_whole
    }
    if not by_rows and _is_close(by_handler, 1.0, 1 / rows.factor):
        where = f" besides the plates {sorted(drawn)}" if drawn else ""
        where = where if prior == 1 else f", as the prior of {latent!r} has"
        raise scale_error(site, by_handler * prior, rows.size, rows.num_rows, where)
    both = math.prod(by_rows.values(), start=1.0)
    is_scaled = _is_close(rows.factor, *by_rows.values(), both)
    if _is_close(by_handler, rows.factor):
        if is_scaled:
            raise _counted_twice(site, rows)
        return
    for plate in () if is_scaled else by_rows:
        members, few = drawn[plate]
        if few == rows.size or (members == rows.num_rows and few > rows.size):
            raise _other_rows(plate, members, few, rows)


def _counted_twice(site: dict[str, Any], rows: _Batch) -> ValueError:
    factor = f"{rows.factor:g}"
    return ValueError(
        f"the likelihood of a batch of {rows.size} of {rows.num_rows} rows must count "
        f"{factor} times, and the site {site['name']!r} counts {factor} times by its "
        f"plate and {factor} times more by numpyro.handlers.scale: drop one of them. "
        "If a temperature is meant, give handlers.scale the product, without a plate."
    )


def _other_rows(plate: str, members: int, few: int, rows: _Batch) -> ValueError:
    given = f"numpyro.plate({plate!r}, loader.num_rows, subsample_size=len(x))"
    if few != rows.size:
        given += ", both times the number of readings in a row"
    return ValueError(
        f"the plate {plate!r} takes {few} of {members} rows, and the loader gives "
        f"{rows.size} of {rows.num_rows}: write {given}. If the likelihood is meant to "
        f"count {members / few:g} times, say so by "
        f"numpyro.handlers.scale(scale={members / few:g}), without a plate."
    )


def _plates_of(
    site: dict[str, Any], trace: dict[str, dict[str, Any]]
) -> dict[str, tuple[int, int]]:
    """The plates around a site: how many members each has, and how many it takes."""
    found = {}
    for frame in site["cond_indep_stack"]:
        if frame.name in trace:
            members, few = trace[frame.name]["args"]
            found[frame.name] = members, members if few is None else few
    return found


def _scale_of_priors(
    trace: dict[str, dict[str, Any]], size: int
) -> tuple[float, str | None]:
    """The scale of all global latents, if it is one, and the name of one of them."""
    found = {
        name: _number(site["scale"])
        for name, site in trace.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        # A latent with an axis of rows may be one of the rows.
        and size not in jnp.shape(site["value"])
        and all(one == few for one, few in _plates_of(site, trace).values())
    }
    common = set(found.values())
    scale = common.pop() if len(common) == 1 else None
    return (scale, next(iter(found))) if scale else (1.0, None)


def _is_close(number: float, *others: float) -> bool:
    return any(math.isclose(number, other) for other in others)


def _number(scale: Any) -> float | None:
    """A scale as a number; None if it is traced or differs between rows."""
    if scale is None:
        return 1.0
    if isinstance(scale, Tracer):
        return None
    numbers = np.unique(np.asarray(scale))
    return float(numbers[0]) if numbers.size == 1 else None


def _is_observed(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and site["is_observed"]


def _of_plate(name: str) -> str:
    return f"indices of the plate {name}"
