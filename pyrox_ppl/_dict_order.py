"""Keeps the key order of dictionaries in a pytree, which JAX would sort."""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax

IsLeaf = Callable[[Any], bool]


@jax.tree_util.register_pytree_node_class
class _OrderedDict:
    """A dictionary whose keys keep their order in a pytree."""

    def __init__(self, make: Any, names: tuple, values: tuple) -> None:
        self.make, self.names, self.values = make, names, values

    def tree_flatten(self) -> tuple[tuple, Any]:
        """Return the values as children, and the class and keys as static data."""
        return self.values, (self.make, self.names)

    @classmethod
    def tree_unflatten(cls, rest: Any, values: Any) -> "_OrderedDict":
        """Rebuild the dictionary with other values."""
        make, names = rest
        return cls(make, names, tuple(values))


def wrap_dicts(tree: Any, is_leaf: IsLeaf = lambda _: False) -> Any:
    """Replace each dictionary whose keys JAX would sort by an `_OrderedDict`."""

    def convert(part: Any) -> Any:
        if not _is_dict(part):
            return part
        make: Any = dict
        if isinstance(part, defaultdict):
            # The factory belongs to the treedef, or `unwrap_dicts` would lose it.
            make = functools.partial(defaultdict, part.default_factory)
        values = tuple(wrap_dicts(value, is_leaf) for value in part.values())
        return _OrderedDict(make, tuple(part), values)

    return jax.tree.map(convert, tree, is_leaf=lambda x: _is_dict(x) or is_leaf(x))


def unwrap_dicts(tree: Any, is_leaf: IsLeaf = lambda _: False) -> Any:
    """Restore the dictionaries that `wrap_dicts` replaced."""

    def is_wrapped(part: Any) -> bool:
        return isinstance(part, _OrderedDict)

    def convert(part: Any) -> Any:
        if not is_wrapped(part):
            return part
        values = (unwrap_dicts(value, is_leaf) for value in part.values)
        return part.make(zip(part.names, values, strict=True))

    return jax.tree.map(convert, tree, is_leaf=lambda x: is_wrapped(x) or is_leaf(x))


def rebuild[Tree](tree: Tree, leaves: list[Any]) -> Tree:
    """Replace the leaves of a pytree, given in the order of ``jax.tree.leaves``.

    ``jax.tree.unflatten`` alone would sort the keys of dictionaries, which changes the
    function of a module that loops over one.
    """
    new = jax.tree.unflatten(jax.tree.structure(tree), leaves)
    return _restore_key_order(tree, new)


def _restore_key_order(tree: Any, new: Any) -> Any:
    """Give the dictionaries of `new` the key order of those of `tree`."""
    # Most modules hold no dictionary, and pay nothing for the few that do.
    if not any(_is_dict(part) for part in jax.tree.leaves(tree, is_leaf=_is_dict)):
        return new

    def convert(old: Any, part: Any) -> Any:
        if not _is_dict(old):
            return part
        kept = {key: _restore_key_order(old[key], part[key]) for key in old}
        if isinstance(part, defaultdict):
            return defaultdict(part.default_factory, kept)
        return kept

    return jax.tree.map(convert, tree, new, is_leaf=_is_dict)


def _is_dict(part: Any) -> bool:
    """Whether JAX sorts the keys: it keeps those of an ``OrderedDict``."""
    return type(part) in (dict, defaultdict)
