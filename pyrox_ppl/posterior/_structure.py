"""A module as text and arrays: its classes, constants and functions by their names."""

import collections
import dataclasses
import enum
import functools
import importlib
import inspect
import json
import types
from typing import Any

import equinox as eqx
import jax
import ml_dtypes
import numpy as np

from pyrox_ppl.posterior._shared import places_of

# Where the functions of networks are public; their own __module__ often is not.
_PUBLIC = (
    "jax.nn",
    "jax.numpy",
    "jax.lax",
    "jax.scipy.special",
    "equinox.nn",
    "numpy",
)


def describe(module: Any) -> tuple[str, list[np.ndarray]]:
    """Write a module's structure as JSON, its arrays apart.

    The same array at two places is one array: tied leaves stay tied.

    Raises:
        ValueError: If something in it has no name to be found by: a lambda, say.
    """
    writer = _Writer()
    return json.dumps(writer.node(module, type(module).__name__)), writer.plain


class _Writer:
    """The nodes of a tree as JSON can hold them, and the arrays met on the way."""

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
                    "enum": _name_of(type(value), path),
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
                cls = _name_of(type(value), path)
                return {"partial": self._all(parts, path), "of": cls}
            case types.MethodType() | eqx.Module(__func__=_, __self__=_):
                return self._method(value, path)
            case eqx.nn.Shared():
                # Its functions are mostly lambdas.
                return self._module(value, path, **(places_of(value) or {}))
            case eqx.nn.StateIndex():
                init = self.node(value.init, f"{path}.init")
                return {"index": self._marker(value.marker), "init": init}
            case eqx.nn.State():
                values, keys = value.tree_flatten()
                markers = [self._marker(key) for key in keys]
                return {"state": self._all(values, path), "markers": markers}
            case eqx.Module():
                return self._module(value, path)
        container = self._container(value, path)
        if container is not None:
            return container
        if value is ...:
            return {"ellipsis": True}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._module(value, path)
        if type(value).__name__ == "SharedNode":
            return {"module": _name_of(type(value), path), "fields": {}}
        if callable(value):
            return {"named": _name_of(value, path)}
        raise ValueError(
            f"{path} is {value!r} of {type(value).__name__}, which cannot be saved: a "
            "module may hold arrays, modules, dataclasses, numbers, strings, "
            "containers of them, and functions that have a name in a Python module."
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
            return {"named_tuple": _name_of(kind, path), "items": items}
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
        if id(value) not in self._arrays:
            is_key = jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
            array = np.asarray(jax.random.key_data(value) if is_key else value)
            dtype_name(array.dtype, path)
            self._arrays[id(value)] = (len(self.plain), value)
            self.plain.append(array)
        node: dict[str, Any] = {"array": self._arrays[id(value)][0]}
        if not isinstance(value, jax.Array):
            return {**node, "kind": "numpy"}
        if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
            return {**node, "kind": "key", "impl": str(jax.random.key_impl(value))}
        return {**node, "kind": "weak" if value.weak_type else "jax"}

    def _marker(self, marker: Any) -> Any:
        """The key of a state: a name, or an object that is the same at both ends."""
        if isinstance(marker, str):
            return marker
        return self._markers.setdefault(id(marker), (len(self._markers), marker))[0]

    def _method(self, value: Any, path: str) -> dict[str, Any]:
        owner, name = value.__self__, value.__func__.__name__
        found = getattr(owner, name, None)
        if getattr(found, "__func__", None) is not value.__func__:
            raise ValueError(
                f"{path} is {value!r}, which is not the method {name!r} of its object: "
                "it cannot be saved."
            )
        return {"method": name, "of": self.node(owner, path)}

    def _module(self, value: Any, path: str, **instead: Any) -> dict[str, Any]:
        cls = _name_of(type(value), path)
        defaults = _defaults(type(value))
        held = getattr(value, "__dict__", {})
        names = [field.name for field in dataclasses.fields(value)]
        unknown = [n for n in held if n not in names and not _is_remade(type(value), n)]
        if unknown:
            raise ValueError(
                f"{path} has the attributes {unknown}, which are no fields of "
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


def rebuild(description: str, arrays: list[np.ndarray]) -> Any:
    """Make the module again.

    Raises:
        ValueError: If a class or function is not there under its name, if a class has
            other fields now, or if JAX does not hold the arrays in their dtype.
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
                return _defaults(_find(cls))[name]
            case {"tuple": items}:
                return tuple(build(item) for item in items)
            case {"named_tuple": name, "items": items}:
                return _find(name)(*(build(item) for item in items))
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
                return _find(name)(build(value))
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
                return _find(name)(function, *args, **keywords)
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
                return _find(name)
            case list():
                return [build(item) for item in node]
            case _:
                return node

    return build(json.loads(description))


def dtype_name(dtype: np.dtype, path: str) -> str:
    """The name under which `dtype_of` finds a dtype, byte order and length too.

    Raises:
        ValueError: If the values of the dtype are more than their bytes.
    """
    if dtype.hasobject or dtype.names is not None:
        raise ValueError(
            f"{path} is an array of dtype {dtype}, which cannot be saved: make it one "
            "of numbers or of strings of a fixed length."
        )
    return dtype.name if hasattr(ml_dtypes, dtype.name) else dtype.str


def dtype_of(name: str) -> np.dtype:
    """The dtype of a name of :func:`dtype_name`."""
    return np.dtype(getattr(ml_dtypes, name, name))


def _array_of(array: np.ndarray, node: dict[str, Any]) -> Any:
    """An array of the kind that it was.

    Raises:
        ValueError: If JAX would give it another dtype.
    """
    if node["kind"] == "numpy":
        return array
    if node["kind"] == "key":
        return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=node["impl"])
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"the module holds an array of {array.dtype.name}, of which JAX makes "
            f"{jax.dtypes.canonicalize_dtype(array.dtype).name} here: call "
            'jax.config.update("jax_enable_x64", True) before, as where it was saved '
            "(its draws alone: `xarray.open_datatree`)."
        )
    if node["kind"] == "weak":
        # Of a weak type, which leaves the dtype of a result to the other operand.
        zero = array.dtype.type(0).item()
        return jax.numpy.full(array.shape, zero).at[...].set(array)
    return jax.numpy.asarray(array)


def _module_of(name: str, fields: dict[str, Any], absent: list[str]) -> Any:
    """An instance, as Equinox itself makes one from its leaves."""
    cls = _find(name)
    if not isinstance(cls, type):
        raise ValueError(f"{name!r} is no class.")
    known = [f.name for f in dataclasses.fields(cls)] if fields or absent else []
    if {*known} != {*fields, *absent}:
        raise ValueError(
            f"the class {name!r} was changed since: its fields were "
            f"{[*fields, *absent]} and are {known}. Load the file where the class is "
            "as it was."
        )
    module = object.__new__(cls)
    for field, value in fields.items():
        object.__setattr__(module, field, value)
    return module


def _is_remade(cls: type, name: str) -> bool:
    """Whether an attribute is a wrapper's name, or computed where it is needed."""
    is_cached = isinstance(
        inspect.getattr_static(cls, name, None), functools.cached_property
    )
    return is_cached or (name.startswith("__") and name.endswith("__"))


def _defaults(cls: Any) -> dict[str, Any]:
    """What the constructor takes for each argument that is not given.

    Equinox's networks have a lambda there, which has no name of its own.
    """
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


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
