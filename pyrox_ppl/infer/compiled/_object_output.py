"""ObjectOutput: an object as a result of a compiled function."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.core import Tracer
from numpyro.primitives import Messenger


class _Place(NamedTuple):
    """The place of a traced array among the outputs."""

    number: int


class _Recipe(NamedTuple):
    """How to make an object that holds traced arrays from its parts."""

    make: Callable[[list], Any]
    parts: list


class Rest:
    """What an object consists of besides traced arrays."""

    def __init__(self, node: Any) -> None:
        self.node = node


@jax.tree_util.register_pytree_node_class
class ObjectOutput:
    """An object as a pytree of its traced arrays, everything else kept as it is.

    A compiled function can return it where it could not return the object: the messages
    of a trace, a function with bound arguments, a handler around one. A part without a
    traced array stays the same object.

    JAX never forgets the structure of a result, and through it the guide, the model and
    the data. The structure therefore refers to the rest weakly.

    Args:
        value: The object.
        kept: Where the rest is kept, which must live as long as the compiled function.
    """

    def __init__(self, value: Any, kept: list[Rest]) -> None:
        self.arrays: list[Any] = []
        self._rest = Rest(self._record(value))
        kept.append(self._rest)

    def tree_flatten(self) -> tuple[tuple, Any]:
        """Flatten into the arrays."""
        return tuple(self.arrays), weakref.ref(self._rest)

    @classmethod
    def tree_unflatten(cls, rest: Any, arrays: tuple) -> "ObjectOutput":
        """Rebuild with other arrays."""
        output = object.__new__(cls)
        output.arrays, output._rest = list(arrays), rest()
        return output

    def value(self) -> Any:
        """The object, with the arrays in place."""
        return self._rebuild(self._rest.node)

    def _record(self, value: Any) -> Any:
        if isinstance(value, Tracer):
            self.arrays.append(value)
            return _Place(len(self.arrays) - 1)
        make, parts = _take_apart(value)
        before = len(self.arrays)
        recorded = [self._record(part) for part in parts]
        return value if len(self.arrays) == before else _Recipe(make, recorded)

    def _rebuild(self, node: Any) -> Any:
        if isinstance(node, _Place):
            return self.arrays[node.number]
        if isinstance(node, _Recipe):
            return node.make([self._rebuild(part) for part in node.parts])
        return node


def _take_apart(value: Any) -> tuple[Callable[[list], Any], list]:
    """What rebuilds an object from its parts, and the parts: none of a plain value."""
    if type(value) is dict:
        names = list(value)
        return lambda parts: dict(zip(names, parts, strict=True)), list(value.values())
    if isinstance(value, partial):
        return lambda parts: partial(parts[0], *parts[1], **parts[2]), [
            value.func,
            value.args,
            value.keywords,
        ]
    if isinstance(value, Messenger):
        return partial(_make_handler, type(value)), [dict(vars(value))]
    leaves, treedef = jax.tree.flatten(value, is_leaf=lambda part: part is not value)
    whole = len(leaves) == 1 and leaves[0] is value
    return partial(jax.tree.unflatten, treedef), [] if whole else leaves


def _make_handler(kind: type, parts: list) -> Any:
    handler = object.__new__(kind)
    vars(handler).update(parts[0])
    return handler
