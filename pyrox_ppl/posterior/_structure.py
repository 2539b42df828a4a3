"""A module as text and arrays: its classes, constants and functions by their names."""

import dataclasses
import functools
import importlib
import inspect
import json
from typing import Any

import equinox as eqx
import jax
import numpy as np

# Where the functions of networks are public; their own __module__ often is not.
_PUBLIC = ("jax.nn", "jax.numpy", "jax.lax", "equinox.nn")


def describe(module: Any) -> tuple[str, list[np.ndarray]]:
    """Write a module's structure as JSON, its arrays apart.

    The same array at two places is one array: tied leaves stay tied.

    Raises:
        ValueError: If something in it has no name to be found by: a lambda, say.
    """
    arrays: list[Any] = []

    def node(value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, jax.Array | np.ndarray):
            is_jax = isinstance(value, jax.Array)
            for index, array in enumerate(arrays):
                if array is value:
                    return {"array": index, "jax": is_jax}
            arrays.append(value)
            return {"array": len(arrays) - 1, "jax": is_jax}
        if isinstance(value, eqx.Module):
            cls = _name_of(type(value), path)
            defaults = _defaults(type(value))
            fields = {}
            for field in dataclasses.fields(value):
                if field.name in value.__dict__:
                    part = value.__dict__[field.name]
                    is_default = callable(part) and part is defaults.get(field.name)
                    fields[field.name] = (
                        {"default": field.name, "of": cls}
                        if is_default
                        else node(part, f"{path}.{field.name}")
                    )
            return {"module": cls, "fields": fields}
        if type(value) in (tuple, list):
            items = [node(item, f"{path}.{i}") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if type(value) is dict:
            items = [[node(k, path), node(v, f"{path}.{k}")] for k, v in value.items()]
            return {"dict": items}
        if isinstance(value, np.dtype):
            return {"dtype": value.name}
        if isinstance(value, np.generic):
            return {"scalar": value.item(), "dtype": value.dtype.name}
        if isinstance(value, functools.partial):
            parts = (value.args, dict(value.keywords))
            return {
                "partial": node(value.func, path),
                "given": [node(part, path) for part in parts],
            }
        if callable(value):
            return {"named": _name_of(value, path)}
        raise ValueError(
            f"{path} is {value!r}, which cannot be saved: a module may hold arrays, "
            "modules, numbers, strings, containers of them, and functions that have a "
            "name in a Python module."
        )

    return json.dumps(node(module, type(module).__name__)), [
        _plain(array, type(module).__name__) for array in arrays
    ]


def rebuild(description: str, arrays: list[np.ndarray]) -> Any:
    """Make the module again.

    Raises:
        ValueError: If a class or function is not there under its name.
    """
    made: dict[tuple[int, bool], Any] = {}

    def build(node: Any) -> Any:
        match node:
            case {"array": index, "jax": is_jax}:
                key = (index, is_jax)
                if key not in made:
                    made[key] = (
                        jax.numpy.asarray(arrays[index]) if is_jax else arrays[index]
                    )
                return made[key]
            case {"module": name, "fields": fields}:
                cls = _find(name)
                if not (isinstance(cls, type) and issubclass(cls, eqx.Module)):
                    raise ValueError(f"{name!r} is no Equinox module.")
                # As Equinox itself makes an instance from its leaves.
                module = object.__new__(cls)
                for field, value in fields.items():
                    object.__setattr__(module, field, build(value))
                return module
            case {"default": name, "of": cls}:
                return _defaults(_find(cls))[name]
            case {"tuple": items}:
                return tuple(build(item) for item in items)
            case {"dict": items}:
                return {build(key): build(value) for key, value in items}
            case {"scalar": value, "dtype": dtype}:
                return np.dtype(dtype).type(value)
            case {"dtype": dtype}:
                return np.dtype(dtype)
            case {"partial": func, "given": given}:
                args, keywords = (build(part) for part in given)
                return functools.partial(build(func), *args, **keywords)
            case {"named": name}:
                return _find(name)
            case list():
                return [build(item) for item in node]
            case _:
                return node

    return build(json.loads(description))


def _defaults(cls: Any) -> dict[str, Any]:
    """What the constructor takes for each argument that is not given.

    Equinox's networks have a lambda there, which has no name of its own.
    """
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _plain(array: Any, name: str) -> np.ndarray:
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{name} holds a PRNG key, which cannot be saved.")
    return np.asarray(array)


def _name_of(value: Any, path: str) -> str:
    """``module:name`` under which Python finds the very same object."""
    own = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    for place in (*_PUBLIC, getattr(value, "__module__", None)):
        name = f"{place}:{own}"
        if place and own and _lookup(name) is value:
            return name
    raise ValueError(
        f"{path} is {value!r}, which has no name that another process could find it "
        "by: define it at the top of a Python module (a lambda or a function inside a "
        "function is not)."
    )


def _find(name: str) -> Any:
    found = _lookup(name)
    if found is None:
        place, _, own = name.partition(":")
        raise ValueError(
            f"the file needs {own!r} of the Python module {place!r}, which is not "
            "here: import or define it first."
        )
    return found


def _lookup(name: str) -> Any:
    place, _, own = name.partition(":")
    try:
        found = importlib.import_module(place)
    except ImportError:
        return None
    for part in own.split("."):
        found = getattr(found, part, None)
    return found
