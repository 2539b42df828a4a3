"""A key of everything that decides what a Python object does: one walk over it."""

import abc
import dataclasses
import enum
import functools
import logging
import operator
import struct
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from numpyro.distributions import Distribution

from pyrox_ppl.infer._arrays import digest
from pyrox_ppl.infer._names_read import (
    file_of,
    is_held_by_a_library,
    is_installed,
    read_by_name,
    read_of_process,
)

PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype)

# What has no state that can change, none that a user can reach, or (a logger) none that
# decides a result.
_FIXED = (
    types.ModuleType,
    types.CodeType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.EllipsisType,
    types.GenericAlias,
    types.NotImplementedType,
    types.UnionType,
    range,
    np.ufunc,
    jax.Array,
    jax.Device,
    logging.Logger,
    type(threading.Lock()),
    type(threading.RLock()),
)
_CONTAINERS = (list, tuple, set, frozenset, dict, deque, types.MappingProxyType)
_HEAP_TYPE = 1 << 9
_POINTER = struct.calcsize("P")

LeaveOut = Callable[[Any], Iterable[str]]


class Same:
    """A leaf of a key: an object compared by identity, and kept alive with the key."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return object.__hash__(self.value)


class Unseen:
    """A leaf of a key: an object whose state no attribute shows. It equals no other."""

    def __init__(self, value: Any) -> None:
        self.value = value


class ByParts(abc.ABC):
    """An object that says itself what it counts by."""

    @abc.abstractmethod
    def content_parts(self) -> tuple:
        """Plain values, and each :class:`Same` object that counts by identity."""


@dataclasses.dataclass(frozen=True)
class OfProcess:
    """A part of a key that belongs to this process, such as its environment."""

    key: Any


def content_key(
    value: Any, leave_out: LeaveOut = lambda _: ()
) -> tuple[Any, tuple[str, ...]]:
    """A hashable key of an object, and the types in it that cannot be looked into.

    The walk follows attributes, containers, closures, defaults, bound objects, and what
    the user's own functions read by name: globals, modules, the environment. Plain
    values count by type and value, NumPy arrays by contents, JAX's arrays, which cannot
    change, by identity. What cannot be looked into makes the key unequal to any other.

    The key is a tree of tuples, whose leaves are plain values, :class:`Same`,
    :class:`Unseen` and :class:`OfProcess`.

    Args:
        value: Any object.
        leave_out: The names of attributes of an object that do not count.
    """
    walk = _Walk(leave_out)
    key = walk.key(value)
    return key, tuple(sorted(walk.unseen))


class _Walk:
    """One pass over all that an object reaches, each object once."""

    def __init__(self, leave_out: LeaveOut) -> None:
        self._leave_out = leave_out
        self._places: dict[int, int] = {}
        self._visited: list[Any] = []  # kept alive, so that no id is used twice
        self.unseen: set[str] = set()

    def key(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return Same(value)
        if type(value) in PLAIN or isinstance(value, np.generic | np.dtype):
            return type(value), repr(value)
        fixed = isinstance(value, _FIXED) or type(value) is object
        if fixed or is_held_by_a_library(value):
            return Same(value)
        if id(value) in self._places:
            return "again", self._places[id(value)]
        self._places[id(value)] = len(self._visited)
        self._visited.append(value)
        return type(value).__name__, *self._parts(value)

    def _parts(self, value: Any) -> tuple:
        match value:
            case ByParts():
                return value.content_parts()
            case np.ndarray() if value.dtype.hasobject:
                return value.shape, self.key(value.ravel().tolist())
            case np.ndarray():
                # A masked array has its mask there; a mapped file is its contents.
                mapped = isinstance(value, np.memmap)
                parts = () if mapped else self._attributes(value)
                return digest(value), Same(type(value)), parts
            case type():
                return Same(value), self._class(value)
            case types.FunctionType():
                return self._function(value)
            case types.MethodType():
                return self.key(value.__func__), self.key(value.__self__)
            case types.BuiltinFunctionType():
                return self._builtin(value)
            case functools.partial():
                parts = value.func, value.args, value.keywords, vars(value)
                return tuple(self.key(part) for part in parts)
            case property():
                parts = value.fget, value.fset, value.fdel
                return tuple(self.key(part) for part in parts)
            case staticmethod() | classmethod():
                return (self.key(value.__func__),)
            case slice():
                return self.key(value.start), self.key(value.stop), self.key(value.step)
            case weakref.ref():
                return (self.key(value()),)
            case Distribution():
                return self.key(type(value)), self.key(_fields_of(value))
        return self._instance(value)

    def _instance(self, value: Any) -> tuple:
        kind = type(value)
        plain: Any
        for plain in (int, float, complex, str, bytes):
            if isinstance(value, plain):  # a subclass, which may hold more
                shown = plain.__repr__(value)
                return self.key(kind), shown, self._attributes(value)
        if isinstance(value, _CONTAINERS):
            return self.key(kind), self._contents(value), self._attributes(value)
        if kind.__module__.partition(".")[0] == "jaxlib" or hasattr(
            value, "__wrapped__"
        ):
            inner = getattr(value, "__wrapped__", None)
            attributes = self._attributes(value) if _is_python(kind) else ()
            return Same(value), self.key(inner), attributes
        if _is_python(kind):
            return self.key(kind), self._attributes(value)
        return (self._unseen(value),)

    def _unseen(self, value: Any) -> Unseen:
        self.unseen.add(type(value).__name__)
        return Unseen(value)

    def _contents(self, value: Any) -> Any:
        if isinstance(value, set | frozenset):
            # A set has no order in which two of them could be walked side by side.
            if all(isinstance(one, (*PLAIN, enum.Enum)) for one in value):
                return frozenset(self.key(one) for one in value)
            return self._unseen(value)
        if isinstance(value, Mapping):
            factory = self.key(getattr(value, "default_factory", None))
            pairs = ((self.key(k), self.key(v)) for k, v in value.items())
            return factory, *pairs
        return tuple(self.key(one) for one in value)

    def _attributes(self, value: Any) -> tuple:
        leave_out = set(self._leave_out(value))
        return tuple(
            (name, self.key(part))
            for name, part in _attributes_of(value)
            if name not in leave_out
        )

    def _builtin(self, value: Any) -> tuple:
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType | type):
            return (Same(value),)
        return value.__name__, self.key(owner)

    def _function(self, value: types.FunctionType) -> tuple:
        parts = value.__defaults__, value.__kwdefaults__, vars(value)
        cells = tuple(self._cell(cell) for cell in value.__closure__ or ())
        named = () if is_installed(value.__code__.co_filename) else self._named(value)
        code = Same(value.__code__), Same(value.__globals__)
        return *code, cells, named, *(self.key(part) for part in parts)

    def _cell(self, cell: Any) -> Any:
        try:
            return self.key(cell.cell_contents)
        except ValueError:
            return "empty"

    def _named(self, function: types.FunctionType) -> tuple:
        """What a function of the user's reads by name."""

        def keys(read: dict[str, Any]) -> tuple:
            return tuple((name, self.key(part)) for name, part in read.items())

        return keys(read_by_name(function)), OfProcess(keys(read_of_process(function)))

    def _class(self, value: type) -> tuple:
        """What the user's own classes hold: methods, and values that may be set."""
        return tuple(
            (name, self.key(part))
            for kind in value.__mro__
            if not is_installed(file_of(kind))
            for name, part in vars(kind).items()
            if isinstance(part, types.FunctionType) or not _is_private(name)
        )


def _fields_of(distribution: Distribution) -> list[Any]:
    """What a distribution is made from; other attributes are computed on demand.

    NumPyro keeps their names in sets, which are in another order in each process.
    """
    kind, (data, aux) = type(distribution), distribution.tree_flatten()
    names = *kind.gather_pytree_data_fields(), *kind.gather_pytree_aux_fields()
    if len(names) != len(data) + len(aux):  # a class that flattens itself otherwise
        return [data, aux]
    pairs = zip(names, (*data, *aux), strict=True)
    return sorted(pairs, key=operator.itemgetter(0))


def _is_private(name: str) -> bool:
    return name.startswith("__") or name == "_abc_impl"


def _is_python(kind: type) -> bool:
    """Whether all of an object's state is in attributes that can be seen."""
    heap = [c for c in kind.__mro__ if c.__flags__ & _HEAP_TYPE]
    bases = {c for c in kind.__mro__ if c not in heap}
    seen = kind.__dictoffset__ != 0 or any("__slots__" in vars(c) for c in heap)
    # A class written in C keeps its state in memory that no attribute shows.
    slots = sum(len(_slots_of(c)) for c in heap)
    hides = kind.__basicsize__ > object.__basicsize__ + slots * _POINTER
    return bool(heap) and bases <= {object} and seen and not hides


def _slots_of(kind: type) -> list[str]:
    """The names of the slots that a class adds."""
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _attributes_of(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object, those in slots among them."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        for name in _slots_of(kind):
            mangled = f"_{kind.__name__.lstrip('_')}{name}"
            private = name.startswith("__") and not name.endswith("__")
            name = mangled if private else name
            if hasattr(value, name):
                yield name, getattr(value, name)
