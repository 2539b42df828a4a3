"""Dictionaries that keep the order of their keys, which JAX sorts, in a pytree."""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax

IsLeaf = Callable[[Any], bool]


@jax.tree_util.register_pytree_node_class
class _InOrder:
    """A dictionary whose keys keep their order in a pytree."""

    def __init__(self, make: Any, names: tuple, values: tuple) -> None:
        self.make, self.names, self.values = make, names, values

    def tree_flatten(self) -> tuple[tuple, Any]:
        """The values are the children."""
        return self.values, (self.make, self.names)

    @classmethod
    def tree_unflatten(cls, rest: Any, values: Any) -> "_InOrder":
        """With other values."""
        make, names = rest
        return cls(make, names, tuple(values))


def wrap_dicts(tree: Any, is_leaf: IsLeaf = lambda _: False) -> Any:
    """A pytree with an `_InOrder` for each dictionary whose keys JAX would sort."""

    def convert(part: Any) -> Any:
        if not _is_dict(part):
            return part
        make: Any = dict
        if isinstance(part, defaultdict):
            make = functools.partial(defaultdict, part.default_factory)
        values = tuple(wrap_dicts(value, is_leaf) for value in part.values())
        return _InOrder(make, tuple(part), values)

    return jax.tree.map(convert, tree, is_leaf=lambda x: _is_dict(x) or is_leaf(x))


def unwrap_dicts(tree: Any, is_leaf: IsLeaf = lambda _: False) -> Any:
    """The dictionaries again that `wrap_dicts` replaced."""

    def is_wrapped(part: Any) -> bool:
        return isinstance(part, _InOrder)

    def convert(part: Any) -> Any:
        if not is_wrapped(part):
            return part
        values = (unwrap_dicts(value, is_leaf) for value in part.values)
        return part.make(zip(part.names, values, strict=True))

    return jax.tree.map(convert, tree, is_leaf=lambda x: is_wrapped(x) or is_leaf(x))


def rebuild[Tree](tree: Tree, leaves: list[Any]) -> Tree:
    """The same pytree with other leaves, given in the order of ``jax.tree.leaves``.

    ``jax.tree.unflatten`` alone would sort the keys of its dictionaries, and a module
    that loops over one would be another function.
    """
    new = jax.tree.unflatten(jax.tree.structure(tree), leaves)
    return _in_order_of(tree, new)


def _in_order_of(tree: Any, new: Any) -> Any:
    if not any(_is_dict(part) for part in jax.tree.leaves(tree, is_leaf=_is_dict)):
        return new

    def convert(old: Any, part: Any) -> Any:
        if not _is_dict(old):
            return part
        kept = {key: _in_order_of(old[key], part[key]) for key in old}
        if isinstance(part, defaultdict):
            return defaultdict(part.default_factory, kept)
        return kept

    return jax.tree.map(convert, tree, new, is_leaf=_is_dict)


def _is_dict(part: Any) -> bool:
    return type(part) in (dict, defaultdict)
