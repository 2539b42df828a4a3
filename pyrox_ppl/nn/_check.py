"""Argument checks of the modules: errors name what came and what was expected."""

from typing import Any

import jax
import jax.numpy as jnp


def check_size(**sizes: int) -> None:
    """Raise unless every size is a positive integer."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}.")


def check_positive(**values: float) -> None:
    """Raise unless every value is a positive, finite number."""
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive number, got {value!r}.")


def check_width(
    module: Any, name: str, array: Any, argument: str, width: int | None
) -> jax.Array:
    """Return `array` as a JAX array; raise unless its last axis has `width` entries.

    If `width` is None, any width is accepted. `argument` is the name for the error.
    """
    try:
        array = jnp.asarray(array)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} of {type(module).__name__} must be an array, got {array!r}."
        ) from error
    if array.ndim == 0 or width not in (None, array.shape[-1]):
        entries = argument if width is None else f"{argument}={width}"
        raise ValueError(
            f"{name} has shape {array.shape}, but {type(module).__name__} takes an "
            f"array whose last axis has {entries} entries."
        )
    return array


def check_batch(
    module: Any, features: jax.Array, context: jax.Array, name: str
) -> None:
    """Raise unless the batch axes of the context broadcast against the features'.

    Either may have no batch axes. Otherwise both need the same number, because NumPy's
    rule of counting from the right could pair a context with the wrong features.
    """
    batch, context_batch = features.shape[:-1], context.shape[:-1]
    if not batch or not context_batch:
        return
    pairs = zip(batch, context_batch, strict=False)
    if len(batch) != len(context_batch) or any(
        a != b and 1 not in (a, b) for a, b in pairs
    ):
        raise ValueError(
            f"z has batch axes {context_batch}, but {name} has {batch}. "
            f"{type(module).__name__} takes one context (a vector), or a z with as "
            f"many batch axes as {name}, each of the same size or of size 1: insert "
            "missing axes, z[:, None, :]."
        )
