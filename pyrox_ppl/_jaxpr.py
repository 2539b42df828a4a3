"""Jaxprs: apply one of their operations."""

from collections.abc import Sequence
from typing import Any


def bind_eqn(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Apply the operation itself."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **params)
    return list(results) if eqn.primitive.multiple_results else [results]
