"""The leaves of a module: their places, and what the classes above say of them."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from pyrox_ppl._fans import NormPart, fan_in_of, fan_out_of, norm_part

Role = Literal["generator", "backbone"]


class Leaf(NamedTuple):
    """A leaf of a module: its place, and what the classes above it say of it."""

    path: tuple[str | int, ...]
    value: Any
    role: Role | None
    fan_in: int
    fan_out: int
    norm: NormPart | None = None
    is_state: bool = False


def leaves_of(module: Any) -> Iterator[Leaf]:
    """Yield the leaves of `module` in the order of ``jax.tree.leaves``."""
    return _walk(Leaf(path=(), value=module, role=None, fan_in=1, fan_out=0))


def at_all_places(places: Sequence[Leaf]) -> Leaf:
    """Combine what an array is at each of its places; it stands at the first."""
    roles = {place.role for place in places}
    parts = {place.norm for place in places}
    return places[0]._replace(
        role=next(role for role in ("generator", None, "backbone") if role in roles),
        fan_in=max(place.fan_in for place in places),
        fan_out=max(place.fan_out for place in places),
        norm=next(part for part in ("scale", "shift", None) if part in parts),
    )


def _walk(place: Leaf) -> Iterator[Leaf]:
    """Yield the leaves below a node at a place, in the order of ``jax.tree.leaves``."""
    node = place.value
    if isinstance(node, eqx.nn.StateIndex | eqx.nn.State):
        for leaf in jax.tree.leaves(node):
            yield place._replace(value=leaf, is_state=True)
    elif isinstance(node, eqx.nn.Shared):
        filled: dict[int, list[Leaf]] = {}  # at the places that the node leaves empty
        for leaf in _walk(place._replace(value=node())):
            filled.setdefault(id(leaf.value), []).append(leaf)
        for leaf in _walk_below(place):
            yield at_all_places([leaf, *filled.get(id(leaf.value), [])])
    else:
        yield from _walk_below(place)


def _walk_below(place: Leaf) -> Iterator[Leaf]:
    """Yield the leaves below a node, or the node if it is a leaf."""
    node = place.value
    # Every child counts as a leaf, so this flattens one level of the tree.
    children = [
        (entry[0], child)
        for entry, child in jax.tree_util.tree_flatten_with_path(
            node, is_leaf=lambda other: other is not node
        )[0]
        if entry
    ]
    if not children:
        if jax.tree.leaves(node):
            yield place
        return
    role: Role | None = getattr(type(node), "parameter_role", place.role)
    weight = next((child for key, child in children if _key(key) == "weight"), None)
    for key, child in children:
        name = _key(key)
        yield from _walk(
            Leaf(
                path=(*place.path, name),
                value=child,
                role=_field_role(node, key, role),
                fan_in=fan_in_of(node, name, child, weight),
                fan_out=fan_out_of(node, name, child),
                norm=norm_part(node, name),
            )
        )


def _key(key: Any) -> str | int:
    match key:
        case GetAttrKey(name=name):
            return name
        case SequenceKey(idx=index):
            return index
        case DictKey(key=name) | FlattenedIndexKey(key=name):
            return name if isinstance(name, int) else str(name)
        case _:
            return str(key).strip(".[]'\"")


def _field_role(node: Any, key: Any, role: Role | None) -> Role | None:
    """Return the role that the class of `node` gives its field `key`, or `role`."""
    if isinstance(key, GetAttrKey) and dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            if field.name == key.name:
                return field.metadata.get("parameter_role", role)
    return role
