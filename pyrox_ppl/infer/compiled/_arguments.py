"""The arguments of a model: traced arrays, and a hashable rest."""

import contextlib
import enum
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pyrox_ppl._dict_order import unwrap_dicts, wrap_dicts
from pyrox_ppl.infer._content_key import PLAIN, content_key

_PACKAGE = str(Path(__file__).parents[2])


class ByContent:
    """A value that equals another one with the same content key.

    It is hashable whatever it holds, so that it can be a static argument of a program.
    """

    def __init__(self, value: Any, key: Any) -> None:
        self.value, self._key = value, key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByContent) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class Traced:
    """The place of an array among the traced inputs."""

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
    """Take the arrays out of a pytree: the arrays, the structure and the other leaves.

    Each array object comes once. JAX would make two inputs of an array that stands at
    two places, so the model could not see that they are tied. JAX would also sort the
    keys of dictionaries, which a model may loop over.
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
    """Put the arrays back: the inverse of `take_arrays`."""
    parts = [arrays[one.place] if isinstance(one, Traced) else one for one in leaves]
    return unwrap_dicts(jax.tree.unflatten(treedef, parts))


def split_arguments(arguments: Any) -> tuple[list, ByContent]:
    """Split a pytree into its arrays and the rest, which is compared by its content.

    The rest says which leaves are one array, so that the model sees tied leaves tied.
    Plain values are compared by type and value (``1``, ``1.0`` and ``True`` differ),
    functions, callable objects and the static fields of modules by all that they hold
    now. Anything else can change unnoticed, so it equals nothing but itself.
    """
    arrays, treedef, leaves = take_arrays(arguments)
    keys, opaque = [], set()
    for leaf in leaves:
        key, unseen = _key(leaf)
        keys.append(key)
        opaque.update(unseen)
    structure, unseen = content_key(_structure(treedef))
    opaque.update(unseen)
    if opaque:
        warn_of_recompiling(
            f"there are arguments of type {sorted(opaque)}",
            "pass arrays, numbers, strings or pytrees of them",
        )
    return arrays, ByContent((treedef, leaves), (structure, tuple(keys)))


def join_arguments(arrays: list, static: ByContent) -> Any:
    """Put the arrays back: the inverse of `split_arguments`."""
    return put_arrays(arrays, *static.value)


def on_device(arguments: Any) -> Any:
    """Make JAX's arrays of NumPy's, which no traced number can index."""
    arrays, *rest = take_arrays(arguments)
    return put_arrays(jax.device_put(arrays), *rest)


def warn_of_recompiling(what: str, advice: str) -> None:
    """Warn the user that nothing compiled will be used again, and what to do."""
    warnings.warn(
        f"{what}, which can change without notice, so the program is compiled anew for "
        f"each run: {advice} to compile once.",
        skip_file_prefixes=(_PACKAGE,),
    )


def is_staged(*inputs: Any) -> bool:
    """Whether the caller, or one of its inputs, is being traced by a transform.

    A ``jit`` traces all that is computed within; a ``vmap`` what depends on its inputs.
    """
    return holds_tracers((jax.device_put(np.zeros(())), inputs))


def holds_tracers(inputs: Any) -> bool:
    """Whether a leaf of some inputs is being traced by a transform."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(inputs))


@contextlib.contextmanager
def explain_tracing_errors(where: str) -> Iterator[None]:
    """Add advice to JAX's error about a traced value in Python code."""
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
    """The structure of a tree, with what its nodes hold besides children."""
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
