"""A batch as a program of zeros: what the uses of weights send back, by position."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pyrox_ppl.infer.curvature._arrange import Arranged, arrange
from pyrox_ppl.infer.curvature._at_mode import ModelAtMode, Values
from pyrox_ppl.infer.curvature._instrument import Arrays, Instrument, zeros_of
from pyrox_ppl.infer.curvature._uses import Path, Use, Uses, find_uses


class Part(NamedTuple):
    """One array of whitened parameters.

    Attributes:
        site: The observed site.
        shape: The batch axes, then the columns.
        event_dim: The number of axes of one datum that the columns join.
        batch_dim: The number of the batch axes that are the site's own.
    """

    site: str
    shape: tuple[int, ...]
    event_dim: int
    batch_dim: int


class Program(NamedTuple):
    """A batch of a model as a jaxpr, with its uses.

    Attributes:
        closed: The jaxpr from values by site to parts, then weights of rows.
        names: The sites, in the order of the inputs.
        others: The inputs after the sites.
        uses: The uses of sites that have a rule.
        arranged: The uses in their common form, by path and site.
        without_rule: The other sites, and why.
        parts: The results that depend on a use, by position.
        weights: The position of the weights of rows, by observed site.
    """

    closed: Any
    names: list[str]
    others: list[Any]
    uses: Uses
    arranged: dict[tuple[Path, str], Arranged]
    without_rule: dict[str, str]
    parts: dict[int, Part]
    weights: dict[str, int]

    def paths_of(self, site: str) -> list[Path]:
        """The uses of one site."""
        return [path for path, name in self.arranged if name == site]


def make_program(
    at_mode: ModelAtMode, key: jax.Array | None, args: tuple, kwargs: dict[str, Any]
) -> Program:
    """Trace the model and find the uses of its sites."""
    start = at_mode.start
    names = list(start)
    described: list[Part] = []
    # All arrays are inputs, so that the same program results inside and outside a jit.
    arrays, rest = eqx.partition((at_mode, key, args, kwargs), _is_array)
    others, tree = jax.tree.flatten(arrays)

    def function(
        values: list[jax.Array], *others: Any
    ) -> tuple[list, dict[str, jax.Array]]:
        given = eqx.combine(jax.tree.unflatten(tree, others), rest)
        at_mode, key, args, kwargs = given
        u = dict(zip(names, values, strict=True))
        found = at_mode.whitened(u, key, args, kwargs)
        described[:] = [
            Part(site, part.shape, whitened.event_dim, whitened.batch_dim)
            for site, whitened in found.items()
            for part in whitened.parts
        ]
        parts = [part for whitened in found.values() for part in whitened.parts]
        return parts, {site: whitened.weight for site, whitened in found.items()}

    trace = jax.make_jaxpr(function, return_shape=True)
    closed, shapes = trace(list(start.values()), *others)
    uses = find_uses(closed, names)
    without_rule = dict(uses.without_rule)
    arranged: dict[tuple[Path, str], Arranged] = {}
    for path, use in uses.by_path.items():
        for site in use.lazy.entries:
            form = None
            if site not in without_rule:
                form = arrange(use, site, start[site].size)
            if form is None:
                without_rule.setdefault(site, f"a part of it in `{use.kind}`")
            else:
                arranged[path, site] = form
    arranged = {k: form for k, form in arranged.items() if k[1] not in without_rule}
    used = {site for _, site in arranged}
    for site in names:
        if site not in used:
            without_rule.setdefault(site, "nothing that meets data")
    kept = {path for path, _ in arranged}
    by_path = {path: use for path, use in uses.by_path.items() if path in kept}
    parts = {k: part for k, part in enumerate(described) if uses.active[k]}
    weights = {site: len(described) + k for k, site in enumerate(sorted(shapes[1]))}
    uses = uses._replace(by_path=by_path)
    return Program(closed, names, others, uses, arranged, without_rule, parts, weights)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


class Batch(eqx.Module):
    """A program evaluated at the mode.

    Attributes:
        results: The results of the program.
        met: What the weights meet, by path.
        pullback: From derivatives by the results to derivatives by the zeros.
    """

    results: list[jax.Array]
    met: Arrays
    pullback: Callable

    def send_back(self, position: int, cotangent: jax.Array) -> Arrays:
        """The derivatives by the zeros, for the derivative by one result."""
        zeros = [jnp.zeros_like(result) for result in self.results]
        zeros[position] = cotangent.astype(zeros[position].dtype)
        return self.pullback(zeros)


def run_batch(program: Program, values: Values) -> Batch:
    """Run the program, ready to send derivatives back."""
    inputs = [*(values[name] for name in program.names), *program.others]
    instrument = Instrument(program.uses)
    dtype = jnp.result_type(*values.values(), jnp.float32)
    dtypes = dict.fromkeys(program.uses.by_path, dtype)

    def function(zeros: Arrays) -> tuple[list[jax.Array], Arrays]:
        return instrument.run(program.closed, inputs, zeros)

    results, pullback, met = jax.vjp(
        function, zeros_of(program.uses.by_path, dtypes), has_aux=True
    )
    return Batch(results, met, lambda cotangents: pullback(cotangents)[0])


def slopes(program: Program, values: Values) -> dict[tuple[Path, str], jax.Array]:
    """The derivative of the weights at a use by a site's entries, entry by entry.

    Only for uses that do not take the entries unchanged.
    """
    wanted: Mapping[Path, Use] = {
        path: use for path, use in program.uses.by_path.items() if not use.lazy.identity
    }
    if not wanted:
        return {}
    instrument = Instrument(program.uses, weights=True)

    def weights(inputs: list[jax.Array]) -> Arrays:
        met = instrument.run(program.closed, [*inputs, *program.others], {})[1]
        # A loop repeats the same weights in each iteration.
        return {path: met[path][(0,) * len(use.loops)] for path, use in wanted.items()}

    primals, pullback = jax.vjp(weights, [values[name] for name in program.names])
    found = {}
    for path in wanted:
        ones = {p: jnp.zeros_like(array) for p, array in primals.items()}
        ones[path] = jnp.ones_like(primals[path])
        by_site = dict(zip(program.names, pullback(ones)[0], strict=True))
        for site in program.names:
            if (path, site) in program.arranged:
                # An entry that is repeated was counted each time.
                repeats = primals[path].size // by_site[site].size
                found[path, site] = by_site[site] / repeats
    return found
