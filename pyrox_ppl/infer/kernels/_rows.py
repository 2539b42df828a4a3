"""The rows of a subsampled plate: which model has them, and a gradient of all rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from numpyro import handlers
from numpyro.primitives import Messenger

from pyrox_ppl._dependence import abstract_trace, find_dependence, mark


class Plates(NamedTuple):
    """The subsampled plates of a model.

    Attributes:
        sizes: The name of each -> its size, and how many rows it draws. Empty where
            all plates draw all of their rows.
        of_rows: The deterministic sites of one minibatch.
    """

    sizes: dict[str, tuple[int, int]]
    of_rows: frozenset[str]


def find_plates(run: Callable[[], Any], trace: dict[str, Any], kernel: str) -> Plates:
    """Find the subsampled plates of a model, and check that a gradient needs no more.

    Args:
        run: The model, its arguments bound.
        trace: Its trace.
        kernel: The kernel that needs them, for the errors.

    Raises:
        ValueError: If there is none, if one has a latent site for each row, if a latent
            site is discrete, or if the likelihood of a minibatch is that of no data or
            stands outside of the plate.
    """
    if not any(
        s["type"] == "plate" and s["args"][1] is not None for s in trace.values()
    ):
        raise ValueError(
            f"{kernel} takes its gradients on minibatches, and the model has no "
            "subsampled plate: with numpyro.plate('row', len(y), subsample_size=100) "
            "as rows: and in it the data of these rows, x[rows] and obs=y[rows]. For "
            "all data in each step run MCLMC or NUTS."
        )
    sizes = find_sizes(trace)
    rows_of = _find_rows(run, sizes)
    latents = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    local = sorted(name for name, site in latents.items() if _stands_in(site, sizes))
    if local:
        raise ValueError(
            f"the sites {local} stand in a subsampled plate, {sorted(sizes)}: they "
            "have a value for each row of data, of which a minibatch shows only some. "
            f"{kernel} cannot sample them. Move them out of the plate, sum them out, "
            "or run NUTS on all rows."
        )
    discrete = sorted(n for n, s in latents.items() if s["fn"].support.is_discrete)
    if discrete:
        raise ValueError(
            f"the sites {discrete} are discrete. NumPyro would sum them out with the "
            "likelihood of a minibatch in place of all data, which makes the gradient "
            f"of {kernel} biased: sum them out in the model, or run NUTS on all rows."
        )
    _check_likelihood(trace, rows_of, sizes, kernel)
    return Plates(
        sizes,
        frozenset(
            name
            for name, site in trace.items()
            if site["type"] == "deterministic"
            and (rows_of[name] or _stands_in(site, sizes))
        ),
    )


def _check_likelihood(
    trace: dict[str, Any],
    rows_of: dict[str, set[str]],
    sizes: dict[str, tuple[int, int]],
    kernel: str,
) -> None:
    """Raise unless minibatches differ, and each counts as much as all of the data."""
    observed = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and site["is_observed"]
    }
    if sizes and not any(rows_of[name] for name in observed):
        raise ValueError(
            f"no observed site depends on the rows that the plates {sorted(sizes)} "
            f"draw, so {kernel} would see the same data in each step: give the model "
            "all data, and take the rows in it, x[rows] and obs=y[rows]."
        )
    unscaled = sorted(
        name
        for name, site in observed.items()
        if rows_of[name] and not _is_scaled(site)
    )
    if unscaled:
        raise ValueError(
            f"the sites {unscaled} depend on the rows of a subsampled plate, "
            f"{sorted(sizes)}, and stand outside of it: their log probability is that "
            "of one minibatch, where the prior needs that of all data. Move them into "
            "the plate."
        )


def find_sizes(trace: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The plates that draw a part of their rows: how many they have, and draw."""
    sizes = {
        name: (site["args"][0], len(site["value"]))
        for name, site in trace.items()
        if site["type"] == "plate"
    }
    return {name: size for name, size in sizes.items() if size[0] > size[1]}


def _stands_in(site: dict[str, Any], plates: Any) -> bool:
    """Whether a site stands in one of these plates."""
    return any(frame.name in plates for frame in site.get("cond_indep_stack") or ())


def _is_scaled(site: dict[str, Any]) -> bool:
    scale = site["scale"]
    return scale is not None and not (isinstance(scale, int | float) and scale == 1)


class _MarkedRows(Messenger):
    """Give plates marked rows."""

    def __init__(self, sizes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self._sizes = sizes
        self.rows: dict[str, jax.Array] = {}

    def process_message(self, msg: Any) -> None:
        """Give a plate its first rows."""
        if msg["type"] == "plate" and msg["name"] in self._sizes:
            msg["value"] = mark(jnp.arange(self._sizes[msg["name"]][1]))
            self.rows[msg["name"]] = msg["value"]


def _find_rows(
    run: Callable[[], Any], sizes: dict[str, tuple[int, int]]
) -> dict[str, set[str]]:
    """For each site the plates whose rows it is computed from, wherever it stands."""

    def rows_and_sites() -> tuple[dict[str, Any], dict[str, Any]]:
        # No handler outside sees this run, or loses a random number to it.
        marked = _MarkedRows(sizes)
        with handlers.block(), marked:
            trace = abstract_trace(run)
        return marked.rows, {name: _arrays(site) for name, site in trace.items()}

    return find_dependence(rows_and_sites)


def _arrays(site: dict[str, Any]) -> list[jax.Array]:
    """The arrays that make a site."""
    leaves = jax.tree.leaves((site["value"], site.get("fn")))
    return [leaf for leaf in leaves if isinstance(leaf, jax.Array)]


def sum_over_all_rows(
    gradient: Callable, plate: str, size: int, subsample: int
) -> jax.Array:
    r"""A gradient on all rows, by blocks as large as a minibatch.

    The gradient on a block is :math:`p + (N/B) \sum_{i \in B} g_i`, with :math:`p` of
    the prior. The sum of :math:`B/N` times those of all blocks is the whole gradient
    where the blocks cover the data. The rows left over are filled up with copies of the
    first row, which a block of nothing else takes away again.

    Args:
        gradient: The gradient, a function of nothing, of a model with this plate.
        plate: Its name.
        size: The number of rows.
        subsample: The number of rows in a minibatch.
    """

    def on(rows: jax.Array) -> jax.Array:
        with handlers.substitute(data={plate: rows}):
            return gradient()

    whole, left = divmod(size, subsample)

    def add(i: Any, total: jax.Array) -> jax.Array:
        return total + on(i * subsample + jnp.arange(subsample))

    like = jax.eval_shape(lambda: on(jnp.arange(subsample)))
    total = lax.fori_loop(0, whole, add, jnp.zeros(like.shape, like.dtype))
    if left == 0:
        return total * (subsample / size)
    missing = subsample - left
    first = jnp.zeros(missing, int)
    total = total + on(jnp.concatenate([whole * subsample + jnp.arange(left), first]))
    copies = on(jnp.zeros(subsample, int))
    return total * (subsample / size) - copies * (missing / size)
