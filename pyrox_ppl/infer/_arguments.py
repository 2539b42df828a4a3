"""What a model is called with, split into traced arrays and what is part of the key."""

import contextlib
import enum
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpyro.primitives import _PYRO_STACK

_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype)


class Static:
    """The part of some arguments that is no array: hashable, compared exactly.

    Plain values are compared by type and value (``1``, ``1.0`` and ``True`` differ),
    functions and classes by identity. Anything else can change unseen, so that it
    equals nothing but itself: the program is compiled anew for each call.
    """

    def __init__(self, treedef: Any, leaves: tuple) -> None:
        self.treedef, self.leaves = treedef, leaves
        self._key = (treedef, tuple(_key(leaf) for leaf in leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class _Same:
    """An object compared by identity, and kept alive with the key."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return object.__hash__(self.value)


class _Traced:
    """Stands for an array that is a traced input."""


def split(arguments: Any) -> tuple[list, Static]:
    """The arrays of any pytree, and the rest of it."""
    leaves, treedef = jax.tree.flatten(arguments)
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    rest = tuple(_Traced if is_array(leaf) else leaf for leaf in leaves)
    opaque = sorted({type(leaf).__name__ for leaf in rest if _is_opaque(leaf)})
    if opaque:
        warnings.warn(
            f"arguments of type {opaque} can change without notice, so the program is "
            "compiled anew for each run: pass arrays, numbers, strings or pytrees of "
            "them to compile once.",
            stacklevel=4,
        )
    return arrays, Static(treedef, rest)


def join(arrays: list, static: Static) -> Any:
    """What `split` took apart."""
    values = iter(arrays)
    leaves = [next(values) if leaf is _Traced else leaf for leaf in static.leaves]
    return jax.tree.unflatten(static.treedef, leaves)


def is_staged() -> bool:
    """Whether a ``jit`` or the like is being traced around the caller."""
    return isinstance(jax.device_put(np.zeros(())), Tracer)


def stack_mark() -> object:
    """A part of a key that is new wherever NumPyro's handlers are around the caller."""
    return object() if _PYRO_STACK else None


@contextlib.contextmanager
def explained_tracing(where: str) -> Iterator[None]:
    """Add what to do to JAX's error about a traced value in Python code."""
    try:
        yield
    except (TypeError, IndexError) as error:
        if isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError):
            error.add_note(
                f"{where} compiles the model with its array arguments as traced "
                "inputs, so the model's Python code cannot read their values. Pass "
                "sizes and flags as Python numbers, compute them from shapes, or use "
                "NumPyro's own class."
            )
        raise


def is_array(leaf: Any) -> bool:
    """Whether a leaf is a traced input of a compiled program."""
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "biufc" or jnp.issubdtype(leaf.dtype, np.number)
    return isinstance(leaf, jax.Array)


def _is_opaque(leaf: Any) -> bool:
    return not (isinstance(leaf, (*_PLAIN, enum.Enum)) or callable(leaf))


def _key(leaf: Any) -> Any:
    if isinstance(leaf, _PLAIN):
        return type(leaf), repr(leaf)
    return _Same(object() if _is_opaque(leaf) else leaf)
