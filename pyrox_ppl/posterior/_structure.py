"""A module as text and arrays: its classes, constants and functions by their names."""

import collections
import dataclasses
import enum
import functools
import json
import types
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.tree_util import GetAttrKey

from pyrox_ppl.posterior._names import (
    defaults_of,
    dtype_name,
    is_derived,
    name_of,
    name_of_wrapped,
)


def describe(module: Any) -> tuple[str, list[np.ndarray]]:
    """Write a module's structure as JSON, and list its arrays.

    An array at two places is listed once: tied leaves stay tied.

    Raises:
        ValueError: If something in it, a lambda for instance, has no name.
    """
    writer = _Writer()
    return json.dumps(writer.node(module, type(module).__name__)), writer.plain


class _Writer:
    """Writes the nodes of a tree as JSON values, and collects their arrays."""

    def __init__(self) -> None:
        self.plain: list[np.ndarray] = []
        # By identity, within this one walk; the objects are kept alive beside it.
        self._arrays: dict[int, tuple[int, Any]] = {}
        self._markers: dict[int, tuple[int, Any]] = {}

    def node(self, value: Any, path: str) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, jax.Array) or type(value) in (np.ndarray, np.memmap):
            return self._array(value, path)
        match value:
            case enum.Enum():
                return {
                    "enum": name_of(type(value), path),
                    "value": self.node(value.value, path),
                }
            case complex():
                return {"complex": [value.real, value.imag]}
            case bytes():
                return {"bytes": value.hex()}
            case np.dtype():
                return {"dtype": dtype_name(value, path)}
            case np.generic():
                dtype = dtype_name(value.dtype, path)
                return {"scalar": value.tobytes().hex(), "dtype": dtype}
            case slice():
                parts = (value.start, value.stop, value.step)
                return {"slice": self._all(parts, path)}
            case range():
                return {"range": [value.start, value.stop, value.step]}
            case functools.partial():
                parts = (value.func, value.args, dict(value.keywords))
                cls = name_of(type(value), path)
                return {"partial": self._all(parts, path), "of": cls}
            case types.MethodType() | eqx.Module(__func__=_, __self__=_):
                return self._method(value, path)
            case eqx.nn.Shared():
                return self._module(value, path, **(_places_of_shared(value) or {}))
            case eqx.nn.StateIndex():
                init = self.node(value.init, f"{path}.init")
                return {"index": self._marker(value.marker), "init": init}
            case eqx.nn.State():
                values, keys = value.tree_flatten()
                markers = [self._marker(key) for key in keys]
                return {"state": self._all(values, path), "markers": markers}
            case eqx.Module():
                wrapped = name_of_wrapped(value)
                return {"named": wrapped} if wrapped else self._module(value, path)
        container = self._container(value, path)
        if container is not None:
            return container
        if value is ...:
            return {"ellipsis": True}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._module(value, path)
        if type(value).__name__ == "SharedNode":
            return {"module": name_of(type(value), path), "fields": {}}
        if callable(value):
            return {"named": name_of(value, path)}
        raise ValueError(
            f"{path} is {value!r} of type {type(value).__name__}, which cannot be "
            "saved. A module may hold arrays, modules, dataclasses, numbers, strings, "
            "containers of these, and functions that have a name in a Python module."
        )

    def _all(self, values: Any, path: str) -> list[Any]:
        return [self.node(item, f"{path}.{i}") for i, item in enumerate(values)]

    def _container(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind is list:
            return self._all(value, path)
        if kind is tuple:
            return {"tuple": self._all(value, path)}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            items = self._all(value, path)
            return {"named_tuple": name_of(kind, path), "items": items}
        if kind in (set, frozenset):
            return {kind.__name__: self._all(value, path)}
        if isinstance(value, dict):
            items = [
                [self.node(k, path), self.node(v, f"{path}.{k}")]
                for k, v in value.items()
            ]
            if kind is dict:
                return {"dict": items}
            if kind is collections.OrderedDict:
                return {"ordered": items}
            if isinstance(value, collections.defaultdict):
                made = self.node(value.default_factory, path)
                return {"dict": items, "default": made}
        return None

    def _array(self, value: Any, path: str) -> dict[str, Any]:
        is_key = jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
        if id(value) not in self._arrays:
            array = np.asarray(jax.random.key_data(value) if is_key else value)
            dtype_name(array.dtype, path)
            self._arrays[id(value)] = (len(self.plain), value)
            self.plain.append(array)
        node: dict[str, Any] = {"array": self._arrays[id(value)][0]}
        if not isinstance(value, jax.Array):
            return {**node, "kind": "numpy"}
        if is_key:
            return {**node, "kind": "key", "impl": str(jax.random.key_impl(value))}
        return {**node, "kind": "weak" if value.weak_type else "jax"}

    def _marker(self, marker: Any) -> Any:
        """The key of a state: a string, or a number for an opaque object."""
        if isinstance(marker, str):
            return marker
        return self._markers.setdefault(id(marker), (len(self._markers), marker))[0]

    def _method(self, value: Any, path: str) -> dict[str, Any]:
        owner, name = value.__self__, value.__func__.__name__
        method = getattr(owner, name, None)
        if getattr(method, "__func__", None) is not value.__func__:
            raise ValueError(
                f"{path} is {value!r}, which its object does not have under the name "
                f"{name!r}, so it cannot be saved: use a method of the class."
            )
        return {"method": name, "of": self.node(owner, path)}

    def _module(self, value: Any, path: str, **instead: Any) -> dict[str, Any]:
        cls = name_of(type(value), path)
        defaults = defaults_of(type(value))
        held = getattr(value, "__dict__", {})
        names = [field.name for field in dataclasses.fields(value)]
        unknown = [n for n in held if n not in names and not is_derived(type(value), n)]
        if unknown:
            raise ValueError(
                f"{path} has the attributes {unknown}, which are not fields of "
                f"{type(value).__name__}: declare them as fields."
            )
        fields = {}
        for name in names:
            if name not in held and (
                isinstance(value, eqx.Module) or not hasattr(value, name)
            ):
                continue
            part = instead.get(
                name, held[name] if name in held else getattr(value, name)
            )
            if callable(part) and part is defaults.get(name):
                fields[name] = {"default": name, "of": cls}
            else:
                fields[name] = self.node(part, f"{path}.{name}")
        absent = [name for name in names if name not in fields]
        return {"module": cls, "fields": fields} | (
            {"absent": absent} if absent else {}
        )


@dataclasses.dataclass(frozen=True)
class NodesAt:
    """A function that returns the nodes of a tree at given places.

    Equinox writes ``eqx.nn.Shared`` with two lambdas, which have no name to be saved
    by; the places that they return say the same.

    Attributes:
        places: For each node the steps to it: whether the step is to an attribute,
            and the name or key.
        is_single: Whether to return the one node itself, not a tuple.
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


def _places_of_shared(shared: eqx.nn.Shared) -> dict[str, NodesAt] | None:
    """The places of the nodes; None where ``get`` computes a node from others."""
    functions = {}
    for name in ("where", "get"):
        nodes = getattr(shared, name)(shared.pytree)
        is_single = not isinstance(nodes, tuple | list)
        nodes = [nodes] if is_single else nodes
        places = [_place(shared.pytree, node) for node in nodes]
        if any(place is None for place in places):
            return None
        functions[name] = NodesAt(tuple(p for p in places if p is not None), is_single)
    return functions


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
