"""What depends on what inside a function, read from its jaxpr."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var
from numpyro import handlers


def mark(value: Any) -> jax.Array:
    """Return the same value as one that :func:`find_dependence` recognises.

    The barrier gives it a variable of its own in the program.
    """
    return jax.lax.optimization_barrier(jnp.asarray(value))


def find_dependence(
    function: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> dict[str, set[str]]:
    """Say which results of a function depend on which values that it made.

    Nothing is computed. A function inside the function (a ``scan``, a ``custom_jvp``)
    counts as one operation, all of whose outputs depend on all of its inputs; only a
    ``jit`` is looked into.

    Args:
        function: Returns two dictionaries of pytrees: values that :func:`mark` made,
            and results.

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
    of_output = iter(follow(closed.jaxpr, reached)[len(jax.tree.leaves(causes)) :])
    return {
        name: set().union(*(next(of_output) for _ in jax.tree.leaves(results[name])))
        for name in sorted(results)
    }


def follow(jaxpr: Any, causes: Mapping[Any, set[str]]) -> list[set[str]]:
    """Say for each output of a program which causes it depends on.

    Args:
        jaxpr: The program.
        causes: The names of the causes of some of its variables.
    """
    reached = dict(causes)
    for equation in jaxpr.eqns:
        sources = [
            reached.get(v, set()) if isinstance(v, Var) else set()
            for v in equation.invars
        ]
        if equation.primitive.name == "jit":
            body = equation.params["jaxpr"]
            body = getattr(body, "jaxpr", body)
            found = follow(body, dict(zip(body.invars, sources, strict=True)))
        else:
            found = [set().union(*sources)] * len(equation.outvars)
        for variable, names in zip(equation.outvars, found, strict=True):
            reached[variable] = reached.get(variable, set()) | names
    return [
        reached.get(v, set()) if isinstance(v, Var) else set() for v in jaxpr.outvars
    ]


def abstract_trace(run: Callable[[], Any]) -> dict[str, dict[str, Any]]:
    """The sites of a model with marked zeros in place of its draws.

    Their values do not matter, and some priors cannot be drawn from.
    """

    def zeros(site: dict[str, Any]) -> jax.Array | None:
        if site["type"] != "sample" or site["value"] is not None:
            return None
        shape = (*site["kwargs"]["sample_shape"], *site["fn"].shape())
        dtype = int if site["fn"].support.is_discrete else float
        return mark(jnp.zeros(shape, dtype))

    seeded = handlers.substitute(handlers.seed(run, 0), substitute_fn=zeros)
    return handlers.trace(seeded).get_trace()
