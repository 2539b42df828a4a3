"""Refuse a model whose sites count otherwise in a minibatch than in all of the data."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from pyrox_ppl._full_data import is_factor
from pyrox_ppl.infer._batch_sites import ROWS, ScaledSite, indices_of, sites_of_batch


class _Batch(NamedTuple):
    """How many rows a batch has, and all data, and the lengths of its other axes."""

    size: int
    num_rows: int
    others: frozenset[int]

    @property
    def factor(self) -> float:
        """How often a site over the rows must count."""
        return self.num_rows / self.size


def check_batch_scale(
    model: Callable, batch: tuple, num_rows: int, kwargs: dict[str, Any]
) -> dict[str, float]:
    """Compare the scale that each site has with the one that it should have.

    A site over the rows of the batch should count rows / batch rows times as often as
    one over none of them, by a plate or else by handlers. Over the rows is what is
    observed and depends on the batch, and a latent on the same plate. Other scales of
    handlers pass: that of a tempered likelihood is not rows / batch rows, nor rows or
    1 / batch rows, which belong to a mean over the rows.

    Args:
        model: The model.
        batch: Its arguments, the arrays of a batch.
        num_rows: The number of rows of all data.
        kwargs: Its keyword arguments.

    Returns:
        The scale of each observed site over the rows, by that which it should have: 1,
        or a temperature; NaN where it is not one number.

    Raises:
        ValueError: If a site has another scale.
    """
    others = frozenset(length for array in batch for length in jnp.shape(array)[1:])
    rows = _Batch(len(batch[0]), num_rows, others)
    sites = sites_of_batch(model, batch, kwargs)
    observed = {name: site for name, site in sites.items() if ROWS in site.causes}
    once = [site for site in sites.values() if _is_over_no_rows(site, sites, rows)]
    for site in observed.values():
        _check_drawn_again(site, rows)
        _check_scale(site, once, rows)
    for site in _latents_beside(observed, sites, rows):
        _check_scale(site, once, rows)
    return {name: site.scale / rows.factor for name, site in observed.items()}


def check_batch_scales(
    model: Callable, batches: tuple[tuple, tuple], num_rows: int, kwargs: dict[str, Any]
) -> None:
    """Check a batch, and the last one, which may be smaller.

    Raises:
        ValueError: If a site has another scale, or counts all data more often in one.
    """
    first, last = batches
    found = check_batch_scale(model, first, num_rows, kwargs)
    if len(last[0]) == len(first[0]):
        return
    factors = [num_rows / len(batch[0]) for batch in batches]
    for name, ratio in check_batch_scale(model, last, num_rows, kwargs).items():
        # Of two that are no numbers nothing is known.
        if name in found and abs(ratio / found[name] - 1.0) > 1e-6:
            raise ValueError(
                f"the likelihood of a batch of {len(first[0])} of {num_rows} rows must "
                f"count {factors[0]:g} times, that of the last batch, of "
                f"{len(last[0])}, {factors[1]:g} times, and the site {name!r} has the "
                f"scales {found[name] * factors[0]:g} and {ratio * factors[1]:g}: "
                "write loader.num_rows / len(x) in place of a number."
            )


def _check_drawn_again(site: ScaledSite, rows: _Batch) -> None:
    """Refuse a plate that draws rows from those of the batch.

    Raises:
        ValueError: If there is one.
    """
    for plate, (members, _) in site.drawn.items():
        is_of_rows = members == rows.num_rows and members not in rows.others
        if rows.factor > 1 and is_of_rows and indices_of(plate) in site.causes:
            raise ValueError(
                f"the site {site.message['name']!r} takes the rows that the plate "
                f"{plate!r} draws, of {members}, from a batch of {rows.size}, which "
                "the loader has drawn already: take all rows of the batch, `x` in "
                "place of `x[indices]`."
            )


def _check_scale(site: ScaledSite, once: list[ScaledSite], rows: _Batch) -> None:
    """Compare the scale of a site over the rows with those of sites over none.

    Raises:
        ValueError: If it is that of a mistake.
    """
    # Where a plate holds all rows of the batch, another one holds parts of a row.
    has_whole = (rows.size, rows.size) in site.plates.values()
    of_rows = {
        plate: (members, few)
        for plate, (members, few) in site.drawn.items()
        if few % rows.size == 0 or not has_whole
    }
    counts = [members / few for members, few in of_rows.values()]
    is_scaled = _is_close(rows.factor, *counts, math.prod(counts, start=1.0)) or any(
        members == rows.num_rows and few < rows.size
        for members, few in of_rows.values()
    )
    by_plate = [p for p, (_, few) in of_rows.items() if few % rows.size == 0]
    beside = [(site.by_handlers / other.by_handlers, other) for other in once]
    beside = beside or [(site.by_handlers, None)]
    if rows.factor > 1:  # a batch of all rows needs no scale: any is a temperature
        mistakes = [1.0, 1 / rows.factor]
        if not is_factor(site.message):  # a factor may hold the mean over the rows
            mistakes += [float(rows.num_rows), 1 / rows.size]
        for ratio, other in beside:
            if _is_close(ratio, *mistakes) and not (is_scaled or by_plate):
                raise _counted_once(site, other, rows)
        for other in once:
            if is_scaled and _is_close(other.by_handlers, rows.factor):
                raise _prior_scaled_alone(site, other, rows)
        if any(_is_close(ratio, rows.factor) for ratio, _ in beside):
            if is_scaled:
                raise _counted_twice(site, rows)
            return
    if is_scaled:
        return
    for plate in by_plate:
        members, few = site.drawn[plate]
        if few == rows.size or (members == rows.num_rows and few > rows.size):
            raise _other_rows(plate, members, few, rows)


def _counted_once(
    site: ScaledSite, other: ScaledSite | None, rows: _Batch
) -> ValueError:
    advice = (
        "put it on a plate of all rows, "
        'numpyro.plate("row", loader.num_rows, subsample_size=len(x)), or under '
        "numpyro.handlers.scale(scale=loader.num_rows / len(x))"
    )
    if is_factor(site.message):
        advice += " in place of a number that multiplies the factor"
    where = f" besides the plates {sorted(site.drawn)}" if site.drawn else ""
    if other is not None and other.by_handlers != 1:
        kind = "site" if other.message["is_observed"] else "prior of"
        where = f", as the {kind} {other.message['name']!r} has"
        advice += ", and that one outside"
    what = "likelihood" if site.message["is_observed"] else "latents"
    return ValueError(
        f"the {what} of a batch of {rows.size} of {rows.num_rows} rows must count "
        f"{rows.factor:g} times, and the site {site.message['name']!r} has the scale "
        f"{site.by_handlers:g}{where}: {advice}."
    )


def _prior_scaled_alone(
    site: ScaledSite, other: ScaledSite, rows: _Batch
) -> ValueError:
    kind = "site" if other.message["is_observed"] else "prior of"
    return ValueError(
        f"the {kind} {other.message['name']!r}, which is over no rows, counts "
        f"{other.by_handlers:g} times by numpyro.handlers.scale, as the likelihood of "
        f"a batch of {rows.size} of {rows.num_rows} rows must, and the plate of the "
        f"site {site.message['name']!r} sees to that already: take it out of "
        "numpyro.handlers.scale."
    )


def _counted_twice(site: ScaledSite, rows: _Batch) -> ValueError:
    factor = f"{rows.factor:g}"
    return ValueError(
        f"the likelihood of a batch of {rows.size} of {rows.num_rows} rows must count "
        f"{factor} times, and the site {site.message['name']!r} counts {factor} times "
        f"by its plate and {factor} times more by numpyro.handlers.scale: drop one of "
        "them. If a temperature is meant, give handlers.scale the product, without a "
        "plate."
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


def _is_over_no_rows(
    site: ScaledSite, sites: dict[str, ScaledSite], rows: _Batch
) -> bool:
    """Whether a site is known to count once, whatever the batch.

    It is a latent that no plate draws and that has no axis of rows, as a parameter of a
    module has none, or it is observed and depends on such latents alone.
    """
    if site.drawn or ROWS in site.causes:
        return False
    if not site.message["is_observed"]:
        on_rows = (rows.size, rows.size) in site.plates.values()
        if site.message.get("parameter") is not None and not on_rows:
            return True
        # Two readings of each row may be one axis.
        return not any(
            length % rows.size == 0 and (rows.size > 1 or length == 1)
            for length in jnp.shape(site.message["value"])
        )
    latents = [sites[name] for name in site.causes if name in sites]
    return bool(latents) and all(
        _is_over_no_rows(latent, sites, rows) for latent in latents
    )


def _latents_beside(
    observed: dict[str, ScaledSite], sites: dict[str, ScaledSite], rows: _Batch
) -> list[ScaledSite]:
    """The latents on a plate that holds the rows of observed sites, and draws none."""
    if rows.size == 1 or rows.size in rows.others:
        return []
    plates = {
        plate
        for site in observed.values()
        for plate, args in site.plates.items()
        if args == (rows.size, rows.size) and not site.drawn
    }
    return [
        site
        for site in sites.values()
        if plates & site.plates.keys() and not site.message["is_observed"]
    ]


def _is_close(number: float, *others: float) -> bool:
    # Scales are of float32 where JAX computed them.
    return any(math.isclose(number, other, rel_tol=1e-6) for other in others)
