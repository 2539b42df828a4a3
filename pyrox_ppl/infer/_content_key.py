"""A key of everything that decides what a Python object does: one walk over it."""

import abc
import dataclasses
import enum
import functools
import logging
import operator
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from numpyro.distributions import Distribution

from pyrox_ppl.infer._arrays import digest
from pyrox_ppl.infer._attributes import attributes_of, is_python
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

    The key is a tuple with one tuple for each object, which refers to others by number,
    so that no chain of objects is too long for it. Its leaves are plain values,
    :class:`Same`, :class:`Unseen` and :class:`OfProcess`.

    Args:
        value: Any object.
        leave_out: The names of attributes of an object that do not count.
    """
    walk = _Walk(leave_out)
    key = walk.go_through(value)
    return key, tuple(sorted(walk.unseen))


class _Walk:
    """One pass over all that an object reaches, each object once.

    Looking at an attribute can import a module and so add to a dictionary on the way:
    the walk goes through copies.
    """

    def __init__(self, leave_out: LeaveOut) -> None:
        self._leave_out = leave_out
        self._places: dict[int, int] = {}
        self._visited: list[Any] = []  # kept alive, so that no id is used twice
        self.unseen: set[str] = set()

    def go_through(self, value: Any) -> tuple:
        """The key of an object, with the parts of all that it reaches."""
        first = self.key(value)
        # The list grows while it is gone through.
        parts = [(type(one).__name__, *self._parts(one)) for one in self._visited]
        return first, *parts

    def key(self, value: Any) -> Any:
        """What counts of a plain value, or the number of an object."""
        if isinstance(value, enum.Enum):
            return Same(value)
        if type(value) in PLAIN or isinstance(value, np.generic | np.dtype):
            return type(value), repr(value)
        fixed = isinstance(value, _FIXED) or type(value) is object
        if fixed or is_held_by_a_library(value):
            return Same(value)
        if id(value) not in self._places:
            self._places[id(value)] = len(self._visited)
            self._visited.append(value)
        return "object", self._places[id(value)]

    def _keys(self, *values: Any) -> tuple:
        return tuple(self.key(value) for value in values)

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
                return self._keys(value.__func__, value.__self__)
            case types.BuiltinFunctionType():
                return self._builtin(value)
            case functools.partial():
                return self._keys(value.func, value.args, value.keywords, vars(value))
            case property():
                return self._keys(value.fget, value.fset, value.fdel)
            case staticmethod() | classmethod():
                return (self.key(value.__func__),)
            case slice():
                return self._keys(value.start, value.stop, value.step)
            case weakref.ref():
                return (self.key(value()),)
            case Distribution():
                return self._keys(type(value), _fields_of(value))
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
        attributes = self._attributes(value) if is_python(kind) else ()
        in_c = kind.__module__.partition(".")[0] == "jaxlib"
        if in_c or hasattr(value, "__wrapped__"):
            inner = getattr(value, "__wrapped__", None)
            return Same(value), self.key(inner), attributes
        if is_python(kind):
            return self.key(kind), attributes
        return (self._unseen(value),)

    def _unseen(self, value: Any) -> Unseen:
        self.unseen.add(type(value).__name__)
        return Unseen(value)

    def _apart(self, value: Any) -> tuple:
        """A key with numbers of its own, which no object outside it changes."""
        key, unseen = content_key(value, self._leave_out)
        self.unseen.update(unseen)
        return key

    def _contents(self, value: Any) -> Any:
        if isinstance(value, set | frozenset):
            # A set has no order in which two of them could be walked side by side.
            if all(isinstance(one, (*PLAIN, enum.Enum)) for one in value):
                return frozenset(self._apart(one) for one in value)
            return self._unseen(value)
        if isinstance(value, Mapping):
            factory = self.key(getattr(value, "default_factory", None))
            pairs = tuple(value.items())
            return factory, *((self.key(k), self.key(v)) for k, v in pairs)
        return self._keys(*value)

    def _attributes(self, value: Any) -> tuple:
        leave_out = set(self._leave_out(value))
        return tuple(
            (name, self.key(part))
            for name, part in attributes_of(value)
            if name not in leave_out
        )

    def _builtin(self, value: Any) -> tuple:
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType | type):
            return (Same(value),)
        return value.__name__, self.key(owner)

    def _function(self, value: types.FunctionType) -> tuple:
        parts = self._keys(value.__defaults__, value.__kwdefaults__, vars(value))
        cells = tuple(self._cell(cell) for cell in value.__closure__ or ())
        named = () if is_installed(value.__code__.co_filename) else self._named(value)
        code = Same(value.__code__), Same(value.__globals__)
        return *code, cells, named, *parts

    def _cell(self, cell: Any) -> Any:
        try:
            return self.key(cell.cell_contents)
        except ValueError:
            return "empty"

    def _named(self, function: types.FunctionType) -> tuple:
        """What a function of the user's reads by name."""
        named = tuple((n, self.key(part)) for n, part in read_by_name(function).items())
        return named, OfProcess(self._apart(read_of_process(function)))

    def _class(self, value: type) -> tuple:
        """What the user's own classes hold: methods, and values that may be set."""
        return tuple(
            (name, self.key(part))
            for kind in value.__mro__
            if not is_installed(file_of(kind))
            for name, part in tuple(vars(kind).items())
            if isinstance(part, types.FunctionType)
            or not (name.startswith("__") or name == "_abc_impl")
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
