"""The argument checks of the modules: what came, what was expected, what to do."""

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
    """Return `array` as a JAX array, its last axis being as wide as `argument` says.

    Any width will do where `width` is None.
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

    One of the two may have none; otherwise they have as many, so that no axis is ever
    matched with another by counting from the right.
    """
    batch, context_batch = features.shape[:-1], context.shape[:-1]
    if not batch or not context_batch:
        return
    pairs = zip(batch, context_batch, strict=False)
    if len(batch) != len(context_batch) or any(
        a != b and 1 not in (a, b) for a, b in pairs
    ):
        raise ValueError(
            f"z has batch axes {context_batch}, {name} has {batch}: "
            f"{type(module).__name__} takes a single context, a vector, or a z of as "
            f"many batch axes as {name}, each of the same size or of size 1 (insert "
            "them: z[:, None, :])."
        )
