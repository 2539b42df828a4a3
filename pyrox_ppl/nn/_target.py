"""Selects the parameters of a target that a HyperNetwork generates."""

from typing import Any

import jax.numpy as jnp

from pyrox_ppl._parameter import Read, class_name, parameters_of
from pyrox_ppl._where import Where, matches, parse_where


def select_parameters(target: Any, where: Where) -> list[Read]:
    """List the parameters of a target that `where` selects by any of their names."""
    reads = parameters_of(target, class_name(target))
    patterns, selects = parse_where(where, lambda parameter: True)
    names = [name for read in reads for name in read.parameter.names]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise ValueError(
                f"where={pattern!r} of HyperNetwork matches no parameter of "
                f"{type(target).__name__}, which has {names}: correct the glob."
            )
    chosen = [read for read in reads if selects(read.parameter)]
    if not chosen:
        raise ValueError(
            f"HyperNetwork would generate no parameter of {type(target).__name__}, "
            f"which has {names}: widen `where`."
        )
    for parameter, _, _ in chosen:
        if not parameter.path:
            raise ValueError(
                "HyperNetwork needs a module, whose parameters have paths, but got a "
                "bare array: put it into a module or a dict."
            )
        if jnp.issubdtype(parameter.dtype, jnp.complexfloating):
            raise TypeError(
                f"{parameter.name!r} is complex ({parameter.dtype}), but heads are "
                "real: keep its real and imaginary parts as two arrays, or exclude it "
                "by `where`."
            )
    return chosen
