"""Supports by name: a tree says in a word how a parameter's values are constrained."""

from typing import Any

from numpyro.distributions import biject_to, constraints

# Each acts on every entry by itself.
_KNOWN = ("positive", "nonnegative", "unit_interval")
_OTHER = "other"


def support_name(support: Any) -> str | None:
    """The name of a support; None for the real numbers, which need no transform."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, type(constraints.real)):
        return None
    return next((n for n in _KNOWN if support == getattr(constraints, n)), _OTHER)


def transform_by_name(name: str) -> Any:
    """The map from the real numbers to a support; None if its name does not say it."""
    return biject_to(getattr(constraints, name)) if name in _KNOWN else None
