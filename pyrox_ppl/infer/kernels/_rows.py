"""The rows of a subsampled plate: which model has them, and a gradient of all rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from numpyro import handlers


class Plates(NamedTuple):
    """The subsampled plates of a model.

    Attributes:
        sizes: The name of each -> its size, and how many rows it draws.
        per_row: The deterministic sites in them: they are of one minibatch.
    """

    sizes: dict[str, tuple[int, int]]
    per_row: frozenset[str]


def find_plates(trace: dict[str, Any], kernel: str) -> Plates:
    """Find the subsampled plates in the trace of a model.

    Raises:
        ValueError: If there is none, or if one has a latent site for each row.
    """
    plates = {
        name: (site["args"][0], len(site["value"]))
        for name, site in trace.items()
        if site["type"] == "plate"
    }
    sizes = {name: size for name, size in plates.items() if size[0] > size[1]}
    if not sizes:
        raise ValueError(
            f"{kernel} takes its gradients on minibatches, and the model has no "
            "subsampled plate: with numpyro.plate('row', len(y), subsample_size=100) "
            "as rows: and in it the data of these rows, x[rows] and obs=y[rows]. For "
            "all data in each step run MCLMC or NUTS."
        )
    inside = {
        name: site
        for name, site in trace.items()
        if any(frame.name in sizes for frame in site.get("cond_indep_stack") or ())
    }
    latent = sorted(
        name
        for name, site in inside.items()
        if site["type"] == "sample" and not site["is_observed"]
    )
    if latent:
        raise ValueError(
            f"the sites {latent} stand in a subsampled plate, {sorted(sizes)}: they "
            "have a value for each row of data, of which a minibatch shows only some. "
            f"{kernel} cannot sample them. Move them out of the plate, sum them out, "
            "or run NUTS on all rows."
        )
    per_row = (n for n, site in inside.items() if site["type"] == "deterministic")
    return Plates(sizes, frozenset(per_row))


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
