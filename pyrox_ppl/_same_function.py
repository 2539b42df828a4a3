"""Whether two modules compute the same function of their parameters.

Draws hold the parameters alone. All else that a module holds, its classes, activations,
numbers and integer arrays, comes from the module that the model reads.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import CellType, FunctionType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# What a user switches on a module that stays the same: dropout off, bound or not.
_MODES = ("inference", "_bound")


def check_same_function(module: Any, own: Any, *, which: str, root: str) -> None:
    """Raise unless a module differs from the model's in its parameters alone.

    Args:
        module: The module.
        own: The module that the model reads.
        which: What an error calls the module.
        root: The root of the names of its parameters.

    Raises:
        ValueError: If they differ in anything else.
    """
    for path, came, expected in _differences(module, own, root):
        raise ValueError(
            f"{which} differs from the one that the model reads: {path!r}, which is no "
            f"parameter, is {_show(came)} there and {_show(expected)} in the model, "
            "which would use its own and compute another function: pass modules that "
            "differ in their parameters alone, or let the model read one like these."
        )


def _differences(
    came: Any, own: Any, path: str, *, hidden: bool = False
) -> Iterator[tuple[str, Any, Any]]:
    """The places at which two modules differ, apart from parameters and state.

    What a function closes over is hidden from JAX, so no array in it is a parameter.
    """
    if isinstance(own, eqx.nn.StateIndex | eqx.nn.State):
        # Each module has marks of its own for its state.
        if type(came) is not type(own):
            yield path, came, own
    elif eqx.is_array(own):
        if not _same_array(came, own, hidden):
            yield path, came, own
    elif isinstance(own, partial):
        if type(came) is not type(own):
            yield path, came, own
        else:
            parts, expected = ((f.func, f.args, f.keywords) for f in (came, own))
            hidden = hidden or type(own) is partial
            yield from _differences(parts, expected, path, hidden=hidden)
    elif isinstance(own, FunctionType):
        if not _same_code(came, own):
            yield path, came, own
    elif type(came) is not type(own):
        yield path, came, own
    elif dataclasses.is_dataclass(own):
        for field in dataclasses.fields(own):
            if field.name not in _MODES:
                part = getattr(came, field.name, None)
                expected = getattr(own, field.name, None)
                below = f"{path}.{field.name}"
                yield from _differences(part, expected, below, hidden=hidden)
    elif isinstance(own, Mapping):
        if list(came) != list(own):
            yield path, came, own
        else:
            for key in own:
                below = f"{path}.{key}"
                yield from _differences(came[key], own[key], below, hidden=hidden)
    elif isinstance(own, Sequence) and not isinstance(own, str | bytes):
        if len(came) != len(own):
            yield path, came, own
        else:
            for i, (part, expected) in enumerate(zip(came, own, strict=True)):
                yield from _differences(part, expected, f"{path}.{i}", hidden=hidden)
    elif came is not own and came != own:
        yield path, came, own


def _same_array(came: Any, own: Any, hidden: bool) -> bool:
    """Whether arrays are equal; that of a plate may have an axis of its members."""
    if not eqx.is_array(came):
        return False
    if eqx.is_inexact_array(own) and not hidden:
        return eqx.is_inexact_array(came)  # parameters are compared elsewhere
    if isinstance(came, Tracer) or isinstance(own, Tracer):
        return True
    if jnp.issubdtype(own.dtype, jax.dtypes.prng_key):
        with jax.ensure_compile_time_eval():
            came, own = (jax.random.key_data(key) for key in (came, own))
    came, own = np.asarray(came), np.asarray(own)
    is_like = came.shape[came.ndim - own.ndim :] == own.shape and came.ndim >= own.ndim
    return is_like and bool(np.all(came == own))


def _same_code(came: Any, own: FunctionType) -> bool:
    """Whether functions are the same, or of the same code and closure."""
    if came is own:
        return True
    if not isinstance(came, FunctionType) or came.__code__ != own.__code__:
        return False
    parts, expected = (
        (f.__defaults__, f.__kwdefaults__, _closure(f)) for f in (came, own)
    )
    return not any(_differences(parts, expected, "", hidden=True))


def _closure(function: FunctionType) -> list[Any]:
    """What a function closes over; other functions, perhaps itself, by their code."""
    cells: tuple[CellType, ...] = function.__closure__ or ()
    contents = [cell.cell_contents for cell in cells]
    return [c.__code__ if isinstance(c, FunctionType) else c for c in contents]


def _show(value: Any) -> str:
    name = getattr(value, "__name__", None)
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    if eqx.is_array(value):
        return "another array" if value.size > 9 else str(np.asarray(value).tolist())
    return str(name) if name else repr(value)
