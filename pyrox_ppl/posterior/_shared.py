"""The nodes that ``eqx.nn.Shared`` ties: by their places, not by its functions."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
from jax.tree_util import GetAttrKey


@dataclasses.dataclass(frozen=True)
class At:
    """The function of a tree that returns the nodes at some places.

    Attributes:
        places: For each node the steps to it: whether an attribute, and which, or a
            key.
        is_single: Whether it returns the one node itself.
    """

    places: tuple[tuple[tuple[bool, Any], ...], ...]
    is_single: bool

    def __call__(self, tree: Any) -> Any:
        """The nodes."""
        nodes = [tree] * len(self.places)
        for index, place in enumerate(self.places):
            for is_attribute, key in place:
                node = nodes[index]
                nodes[index] = getattr(node, key) if is_attribute else node[key]
        return nodes[0] if self.is_single else tuple(nodes)


def places_of(shared: eqx.nn.Shared) -> dict[str, At] | None:
    """Where the nodes are; None where ``get`` computes something of them."""
    found = {}
    for name in ("where", "get"):
        nodes = getattr(shared, name)(shared.pytree)
        is_single = not isinstance(nodes, tuple | list)
        nodes = [nodes] if is_single else nodes
        places = [_place(shared.pytree, node) for node in nodes]
        if any(place is None for place in places):
            return None
        found[name] = At(tuple(p for p in places if p is not None), is_single)
    return found


def _place(tree: Any, node: Any) -> tuple[tuple[bool, Any], ...] | None:
    def is_it(other: Any) -> bool:
        return other is node

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_it)
    for path, leaf in leaves:
        if leaf is node:
            return tuple(_step(key) for key in path)
    return None


def _step(key: Any) -> tuple[bool, Any]:
    if isinstance(key, GetAttrKey):
        return True, key.name
    return False, key.idx if hasattr(key, "idx") else key.key
