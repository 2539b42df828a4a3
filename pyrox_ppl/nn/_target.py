"""The target of a HyperNetwork: which of its parameters, and where they stand."""

from typing import Any

import jax.numpy as jnp

from pyrox_ppl._parameter import (
    Parameter,
    Read,
    class_name,
    parameters_of,
    path_name,
)
from pyrox_ppl._where import Where, matches, selection


def paths_of(parameter: Parameter) -> tuple[str, ...]:
    """Every place of a parameter, its own path first."""
    return tuple(path_name(path) for path in (parameter.path, *parameter.tied))


def selected(target: Any, where: Where) -> list[Read]:
    """The parameters of a target that `where` selects, by whichever of their places."""
    root = class_name(target)
    reads = parameters_of(target, root)
    patterns, selects = selection(where, lambda parameter: True)
    places = {
        read.parameter.name: [f"{root}.{path}" for path in paths_of(read.parameter)]
        for read in reads
    }
    names = [name for tied in places.values() for name in tied]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise ValueError(
                f"where={pattern!r} of HyperNetwork matches no parameter of "
                f"{type(target).__name__}, which has {names}."
            )
    chosen = [
        read
        for read in reads
        if selects(read.parameter)
        or any(matches(n, p) for n in places[read.parameter.name] for p in patterns)
    ]
    if not chosen:
        raise ValueError(
            f"HyperNetwork generates no parameter of {type(target).__name__}, which "
            f"has {names}: see `where`."
        )
    for parameter, _, _ in chosen:
        if not parameter.path:
            raise ValueError(
                "HyperNetwork needs a module, whose parameters have a path, and got a "
                "bare array: put it into a module or a dict."
            )
        if jnp.issubdtype(parameter.dtype, jnp.complexfloating):
            raise TypeError(
                f"{parameter.name!r} is complex ({parameter.dtype}), and heads are "
                "real: keep its real and imaginary parts as two arrays, or leave it "
                "out by `where`."
            )
    return chosen
