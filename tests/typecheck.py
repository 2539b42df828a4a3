"""The type checker that the package is imported with in tests: beartype."""

from collections.abc import Callable
from typing import Any, Self

from beartype import beartype


def check[**P, T](function: Callable[P, T]) -> Callable[P, T]:
    """Decorate by beartype, which cannot tell what `Self` is outside of its class."""
    hints = {k: Any if v is Self else v for k, v in function.__annotations__.items()}
    function.__annotations__ = hints
    return beartype(function)
