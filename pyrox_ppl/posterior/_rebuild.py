"""A module made again from its description and its arrays."""

import collections
import dataclasses
import json
from typing import Any

import equinox as eqx
import jax
import numpy as np

from pyrox_ppl.posterior._names import defaults_of, dtype_of, find


def rebuild(description: str, arrays: list[np.ndarray]) -> Any:
    """Make a module from what `describe` wrote.

    Raises:
        ValueError: If a class or function is not found by its name, if the fields of a
            class have changed, or if JAX does not keep the dtype of an array.
    """
    made: dict[tuple[int, str], Any] = {}
    markers: dict[int, object] = {}

    def marker(key: Any) -> Any:
        return key if isinstance(key, str) else markers.setdefault(key, object())

    def build(node: Any) -> Any:
        match node:
            case {"array": index, "kind": kind}:
                if (index, kind) not in made:
                    made[index, kind] = _array_of(arrays[index], node)
                return made[index, kind]
            case {"module": name, "fields": fields}:
                parts = {field: build(value) for field, value in fields.items()}
                return _module_of(name, parts, node.get("absent", []))
            case {"default": name, "of": cls}:
                return defaults_of(find(cls))[name]
            case {"tuple": items}:
                return tuple(build(item) for item in items)
            case {"named_tuple": name, "items": items}:
                return find(name)(*(build(item) for item in items))
            case {"set": items}:
                return {build(item) for item in items}
            case {"frozenset": items}:
                return frozenset(build(item) for item in items)
            case {"dict": items, "default": default}:
                pairs = {build(key): build(value) for key, value in items}
                return collections.defaultdict(build(default), pairs)
            case {"dict": items}:
                return {build(key): build(value) for key, value in items}
            case {"ordered": items}:
                return collections.OrderedDict(
                    (build(key), build(value)) for key, value in items
                )
            case {"scalar": content, "dtype": name}:
                return np.frombuffer(bytes.fromhex(content), dtype_of(name))[0]
            case {"dtype": name}:
                return dtype_of(name)
            case {"enum": name, "value": value}:
                return find(name)(build(value))
            case {"complex": [real, imaginary]}:
                return complex(real, imaginary)
            case {"bytes": content}:
                return bytes.fromhex(content)
            case {"slice": parts}:
                return slice(*(build(part) for part in parts))
            case {"range": parts}:
                return range(*parts)
            case {"ellipsis": True}:
                return ...
            case {"partial": parts, "of": name}:
                function, args, keywords = (build(part) for part in parts)
                return find(name)(function, *args, **keywords)
            case {"method": name, "of": owner}:
                return getattr(build(owner), name)
            case {"index": key, "init": init}:
                index = object.__new__(eqx.nn.StateIndex)
                object.__setattr__(index, "marker", marker(key))
                object.__setattr__(index, "init", build(init))
                return index
            case {"state": values, "markers": keys}:
                keys = tuple(marker(key) for key in keys)
                return eqx.nn.State.tree_unflatten(keys, [build(v) for v in values])
            case {"named": name}:
                return find(name)
            case list():
                return [build(item) for item in node]
            case _:
                return node

    return build(json.loads(description))


def _array_of(array: np.ndarray, node: dict[str, Any]) -> Any:
    """An array of its former kind: NumPy, JAX, weakly typed or PRNG keys.

    Raises:
        ValueError: If JAX would give it another dtype.
    """
    if node["kind"] == "numpy":
        return array
    if node["kind"] == "key":
        return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=node["impl"])
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"the module holds an array of {array.dtype.name}, which JAX would turn "
            f"into {jax.dtypes.canonicalize_dtype(array.dtype).name}: call "
            'jax.config.update("jax_enable_x64", True) before loading, as before '
            "saving. `xarray.open_datatree` opens the draws without the module."
        )
    if node["kind"] == "weak":
        # A weak type leaves the dtype of a result to the other operand.
        zero = array.dtype.type(0).item()
        return jax.numpy.full(array.shape, zero).at[...].set(array)
    return jax.numpy.asarray(array)


def _module_of(name: str, fields: dict[str, Any], absent: list[str]) -> Any:
    """An instance, as Equinox itself makes one from its leaves."""
    cls = find(name)
    if not isinstance(cls, type):
        raise ValueError(
            f"the file needs the class {name!r}, which is not a class now."
        )
    known = [f.name for f in dataclasses.fields(cls)] if fields or absent else []
    if {*known} != {*fields, *absent}:
        raise ValueError(
            f"the class {name!r} has changed since it was saved: its fields were "
            f"{[*fields, *absent]} and are now {known}. Load the file with the version "
            "of the class that was saved."
        )
    module = object.__new__(cls)
    for field, value in fields.items():
        object.__setattr__(module, field, value)
    return module
