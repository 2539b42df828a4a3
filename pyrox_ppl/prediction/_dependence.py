"""What depends on what inside a function, read from its jaxpr."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var
from numpyro import handlers


def marked(value: Any) -> jax.Array:
    """The same value, as one that :func:`dependence` can find again.

    The barrier makes a variable of it that nothing else in the program is.
    """
    return jax.lax.optimization_barrier(jnp.asarray(value))


def dependence(
    function: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> dict[str, set[str]]:
    """Say which results of a function depend on which values that it made.

    Nothing is computed. A function inside the function (a ``jit``, a ``scan``) counts
    as one operation, all of whose outputs depend on all of its inputs.

    Args:
        function: Returns two dictionaries of pytrees: values that were `marked`, and
            results.

    Returns:
        For each result the names of the marked values that it depends on.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)()
    causes, results = shapes
    reached: dict[Any, set[str]] = {}
    out = iter(closed.jaxpr.outvars)
    for name in sorted(causes):
        for _ in jax.tree.leaves(causes[name]):
            reached.setdefault(next(out), set()).add(name)
    for equation in closed.jaxpr.eqns:
        sources = [v for v in equation.invars if isinstance(v, Var)]
        found = set().union(*(reached.get(v, set()) for v in sources))
        for variable in equation.outvars:
            reached[variable] = reached.get(variable, set()) | found
    return {
        name: set().union(
            *(
                reached.get(v, set())
                for v in (next(out) for _ in jax.tree.leaves(results[name]))
                if isinstance(v, Var)
            )
        )
        for name in sorted(results)
    }


def abstract_trace(
    fn: Callable, args: tuple, kwargs: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The sites of a model whose values do not matter: zeros, not draws.

    Some priors cannot be drawn from. The zeros are `marked`.
    """

    def zeros(site: dict[str, Any]) -> jax.Array | None:
        if site["type"] != "sample" or site["value"] is not None:
            return None
        shape = (*site["kwargs"]["sample_shape"], *site["fn"].shape())
        dtype = int if site["fn"].support.is_discrete else float
        return marked(jnp.zeros(shape, dtype))

    run = handlers.substitute(handlers.seed(fn, 0), substitute_fn=zeros)
    return handlers.trace(run).get_trace(*args, **kwargs)


def content(trace: Mapping[str, Any]) -> dict[str, list[Any]]:
    """All arrays that a model's sites hold, by site; the indices of plates left out."""
    parts = ("value", "fn", "scale")
    return {
        name: [
            leaf
            for part in parts
            for leaf in jax.tree.leaves(site.get(part))
            if isinstance(leaf, jax.Array)
        ]
        for name, site in trace.items()
        if site["type"] != "plate"
    }
