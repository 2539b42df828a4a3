"""Jaxprs: open them, find the bodies of their operations, apply one of these."""

from collections.abc import Iterator, Sequence
from typing import Any


def open_jaxpr(closed: Any) -> tuple[Any, list[Any]]:
    """A jaxpr and its constants; the class differs from version to version of JAX."""
    return getattr(closed, "jaxpr", closed), list(getattr(closed, "consts", ()))


def is_jaxpr(value: Any) -> bool:
    """Whether a parameter of an operation is a jaxpr, open or closed."""
    return hasattr(open_jaxpr(value)[0], "eqns")


def bodies(eqn: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The jaxprs among the parameters of an operation, with their constants."""
    for value in eqn.params.values():
        parts = value if isinstance(value, tuple) else (value,)
        yield from (open_jaxpr(part) for part in parts if is_jaxpr(part))


def bind_eqn(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Apply the operation itself."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **params)
    return list(results) if eqn.primitive.multiple_results else [results]
