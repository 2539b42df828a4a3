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
    """Find the subsampled plates of a model.

    Args:
        run: The model, its arguments bound.
        trace: Its trace.
        kernel: The kernel that needs them, for the errors.

    Raises:
        ValueError: If there is none, or if one has a latent site for each row.
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
    latent = sorted(
        name
        for name, site in trace.items()
        if _stands_in(site, sizes)
        and site["type"] == "sample"
        and not site["is_observed"]
    )
    if latent:
        raise ValueError(
            f"the sites {latent} stand in a subsampled plate, {sorted(sizes)}: they "
            "have a value for each row of data, of which a minibatch shows only some. "
            f"{kernel} cannot sample them. Move them out of the plate, sum them out, "
            "or run NUTS on all rows."
        )
    deterministic = {n: s for n, s in trace.items() if s["type"] == "deterministic"}
    inside = {n for n, site in deterministic.items() if _stands_in(site, sizes)}
    if deterministic.keys() - inside and sizes:
        inside |= _depend_on_rows(run, sizes)
    return Plates(sizes, frozenset(inside))


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


def _depend_on_rows(
    run: Callable[[], Any], sizes: dict[str, tuple[int, int]]
) -> set[str]:
    """The deterministic sites that are computed from the rows, wherever they stand."""

    def rows_and_sites() -> tuple[dict[str, Any], dict[str, Any]]:
        # No handler outside sees this run, or loses a random number to it.
        marked = _MarkedRows(sizes)
        with handlers.block(), marked:
            trace = abstract_trace(run)
        sites = {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] == "deterministic"
        }
        return marked.rows, sites

    return {name for name, rows in find_dependence(rows_and_sites).items() if rows}


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
