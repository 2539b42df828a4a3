"""What a model is called with, split into traced arrays and what is part of the key."""

import contextlib
import enum
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pyrox_ppl._dict_order import unwrap_dicts, wrap_dicts
from pyrox_ppl._numpyro import handler_stack
from pyrox_ppl.infer._content_key import PLAIN, LeaveOut, content_key


class Static:
    """The part of some arguments that is no array: hashable, compared exactly.

    It says which leaves are one array, too: the model sees tied leaves tied. Plain
    values are compared by type and value (``1``, ``1.0`` and ``True`` differ),
    functions, callable objects and the static fields of modules by all that they hold
    now. Anything else can change unseen, so that it equals nothing but itself: the
    program is compiled anew for each call.
    """

    def __init__(self, treedef: Any, leaves: tuple, key: Any) -> None:
        self.treedef, self.leaves, self._key = treedef, leaves, key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class Traced:
    """Stands for an array that is a traced input."""

    def __init__(self, place: int) -> None:
        self.place = place


def is_array(leaf: Any) -> bool:
    """Whether a leaf is a traced input of a compiled program."""
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "biufc" or jnp.issubdtype(leaf.dtype, np.number)
    return isinstance(leaf, jax.Array)


def take_arrays(
    arguments: Any, is_traced: Callable[[Any], bool] = is_array
) -> tuple[list, Any, tuple]:
    """The arrays of any pytree, each object once, and the structure and other leaves.

    JAX would make two inputs of one array at two places, and the model could no longer
    see that they are tied; and it would sort the keys of dictionaries, which a model
    may loop over.
    """
    leaves, treedef = jax.tree.flatten(wrap_dicts(arguments))
    arrays: list[Any] = []
    places: dict[int, int] = {}
    rest = []
    for leaf in leaves:
        if not is_traced(leaf):
            rest.append(leaf)
            continue
        if id(leaf) not in places:
            places[id(leaf)] = len(arrays)
            arrays.append(leaf)
        rest.append(Traced(places[id(leaf)]))
    return arrays, treedef, tuple(rest)


def put_arrays(arrays: list, treedef: Any, leaves: tuple) -> Any:
    """What `take_arrays` took apart."""
    parts = [arrays[one.place] if isinstance(one, Traced) else one for one in leaves]
    return unwrap_dicts(jax.tree.unflatten(treedef, parts))


def split(arguments: Any) -> tuple[list, Static]:
    """The arrays of any pytree, and the rest of it."""
    arrays, treedef, leaves = take_arrays(arguments)
    keys, opaque = [], set()
    for leaf in leaves:
        key, unseen = _key(leaf)
        keys.append(key)
        opaque.update(unseen)
    structure, unseen = content_key(_structure(treedef))
    opaque.update(unseen)
    if opaque:
        warnings.warn(
            f"arguments of type {sorted(opaque)} can change without notice, so the "
            "program is compiled anew for each run: pass arrays, numbers, strings or "
            "pytrees of them to compile once.",
            stacklevel=4,
        )
    return arrays, Static(treedef, leaves, (structure, tuple(keys)))


def join(arrays: list, static: Static) -> Any:
    """What `split` took apart."""
    return put_arrays(arrays, static.treedef, static.leaves)


class Surroundings:
    """The keys of what a program is made from besides arguments: model, guide, ...

    A program is found again where all that these reach is as it was.
    """

    def __init__(self) -> None:
        self._has_run = False

    def key(self, *parts: Any, leave_out: LeaveOut = lambda _: ()) -> Any:
        """The key of the parts as they are now, and a mark of handlers outside."""
        key, unseen = content_key(parts, leave_out)
        if unseen and self._has_run:
            warnings.warn(
                f"the model reaches objects of type {sorted(unseen)}, which can change "
                "without notice, so the program is compiled anew for each run: give "
                "the model what it needs as arrays or plain values.",
                stacklevel=4,
            )
        self._has_run = True
        return key, object() if handler_stack() else None


def is_staged() -> bool:
    """Whether a ``jit`` or the like is being traced around the caller."""
    return isinstance(jax.device_put(np.zeros(())), Tracer)


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


def _structure(treedef: Any) -> Any:
    """A tree's structure with what its nodes keep beside children: static fields."""
    data = treedef.node_data()
    if data is None:
        return "leaf" if treedef.num_leaves else None
    return data, [_structure(part) for part in treedef.children()]


def _key(leaf: Any) -> tuple[Any, tuple[str, ...]]:
    if isinstance(leaf, Traced):
        return ("traced", leaf.place), ()
    if isinstance(leaf, (*PLAIN, enum.Enum)) or callable(leaf):
        return content_key(leaf)
    return object(), (type(leaf).__name__,)
