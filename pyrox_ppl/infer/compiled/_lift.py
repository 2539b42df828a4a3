"""Objects made inside a compiled function, brought out of it with real arrays."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.core import Tracer
from numpyro.primitives import Messenger


class _Place(NamedTuple):
    """Stands for a traced array."""

    number: int


class _Made(NamedTuple):
    """Stands for an object that has traced arrays in it."""

    make: Callable[[list], Any]
    parts: list


@jax.tree_util.register_pytree_node_class
class Lifted:
    """An object as its traced arrays, and the rest of it, kept as it is.

    The result of a compiled function may be one, where the object itself could not: a
    trace's messages, a function with bound arguments, a handler around one. What has no
    traced array in it stays the same object.
    """

    def __init__(self, value: Any) -> None:
        self.arrays: list[Any] = []
        self._rest = self._take(value)

    def tree_flatten(self) -> tuple[tuple, Any]:
        """The arrays are the children."""
        return tuple(self.arrays), self._rest

    @classmethod
    def tree_unflatten(cls, rest: Any, arrays: tuple) -> "Lifted":
        """With other arrays."""
        lifted = object.__new__(cls)
        lifted.arrays, lifted._rest = list(arrays), rest
        return lifted

    def value(self) -> Any:
        """The object again, with the arrays in place."""
        return self._give(self._rest)

    def _take(self, value: Any) -> Any:
        if isinstance(value, Tracer):
            self.arrays.append(value)
            return _Place(len(self.arrays) - 1)
        make, parts = _apart(value)
        before = len(self.arrays)
        taken = [self._take(part) for part in parts]
        return value if len(self.arrays) == before else _Made(make, taken)

    def _give(self, node: Any) -> Any:
        if isinstance(node, _Place):
            return self.arrays[node.number]
        if isinstance(node, _Made):
            return node.make([self._give(part) for part in node.parts])
        return node


def _apart(value: Any) -> tuple[Callable[[list], Any], list]:
    """The parts of an object, and what makes it of them; none of what has no parts."""
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
        return partial(_handler, type(value)), [dict(vars(value))]
    leaves, treedef = jax.tree.flatten(value, is_leaf=lambda part: part is not value)
    whole = len(leaves) == 1 and leaves[0] is value
    return partial(jax.tree.unflatten, treedef), [] if whole else leaves


def _handler(kind: type, parts: list) -> Any:
    handler = object.__new__(kind)
    vars(handler).update(parts[0])
    return handler
