"""Refuse a model that takes the rows of a minibatch for all of the data."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.core import Tracer
from numpyro import handlers

from pyrox_ppl._dependence import abstract_trace, find_dependence, mark
from pyrox_ppl._full_data import arrays_by_site, is_factor
from pyrox_ppl._layer_state import CopyState


def check_batch_scale(
    model: Callable, batch: tuple, num_rows: int, kwargs: dict[str, Any]
) -> None:
    """Refuse a model with an observed site that does not scale its rows up.

    Such a site depends on the batch, and neither a plate nor a handler scales it. Any
    scale but 1 passes: that of a tempered likelihood is not rows / batch rows.

    Args:
        model: The model.
        batch: Its arguments, the arrays of a batch.
        num_rows: The number of rows of all data.
        kwargs: Its keyword arguments.

    Raises:
        ValueError: If there is such a site.
    """
    size = len(batch[0])
    if size == num_rows:
        return
    unscaled: dict[str, dict[str, Any]] = {}

    def rows_and_sites() -> tuple[dict[str, Any], dict[str, Any]]:
        rows = tuple(map(mark, batch))
        # No handler outside sees this run, or loses a random number to it.
        with handlers.block(), CopyState():
            trace = abstract_trace(functools.partial(model, *rows, **kwargs))
        sites = {name: s for name, s in trace.items() if _is_unscaled(s, trace)}
        unscaled.update(sites)
        return {"rows": rows}, arrays_by_site(sites)

    for name, causes in find_dependence(rows_and_sites).items():
        if causes:
            raise scale_error(unscaled[name], 1.0, size, num_rows)


def scale_error(
    site: dict[str, Any], scale: float, size: int, num_rows: int
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
        f"{scale:g}: {advice}."
    )


def _is_unscaled(site: dict[str, Any], trace: dict[str, dict[str, Any]]) -> bool:
    """Whether a site is observed, and counts each of its rows once."""
    if site["type"] != "sample" or not site["is_observed"]:
        return False
    plates = [trace[f.name] for f in site["cond_indep_stack"] if f.name in trace]
    if any(plate["args"][1] not in (None, plate["args"][0]) for plate in plates):
        return False  # a temperature may undo the scale of a plate
    scale = site["scale"]
    if scale is None:
        return True
    return not isinstance(scale, Tracer) and bool(np.all(np.asarray(scale) == 1))
