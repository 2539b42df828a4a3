"""What a Python function does, in a hash: its code, and all that it reads."""

import functools
import hashlib
import logging
import re
import sys
import sysconfig
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pyrox_ppl.infer._arrays import digest
from pyrox_ppl.infer._names_read import read_by_name

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype)
_PLACES = tuple(
    Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")
)


def describe_code(function: Callable, name: str) -> dict[str, str]:
    """The hash of a function, and of each thing that it closes over or reads.

    A function counts by its bytecode, its defaults, the values of its closure and the
    globals that it names; an object by its class and its attributes; an array by its
    contents. What belongs to an installed package counts by its name and the version.

    Returns:
        Hashes (short values in plain text), by `name` and by ``name: variable``.
    """
    found = {name: _hash(function)}
    while isinstance(function, types.MethodType | functools.partial):
        if isinstance(function, functools.partial):
            function = function.func
        else:
            function = function.__func__
    if isinstance(function, types.FunctionType):
        for variable, value in _read_by(function).items():
            found[f"{name}: {variable}"] = (
                f"{type(value).__name__} {value!r}"
                if isinstance(value, _PLAIN) and len(repr(value)) < 40
                else _hash(value)
            )
    return found


def _hash(value: Any) -> str:
    sha = hashlib.sha256()
    _update(sha, value, {})
    return sha.hexdigest()[:16]


def _update(sha: Any, value: Any, seen: dict[int, tuple[int, Any]]) -> None:
    """Add a value to a hash; one met before counts by when that was."""

    def add(*words: Any) -> None:
        sha.update("\0".join(map(str, ("", *words, ""))).encode())

    def go_on(*values: Any) -> None:
        for part in values:
            _update(sha, part, seen)

    if isinstance(value, _PLAIN):
        return add(type(value).__qualname__, repr(value))
    if id(value) in seen:
        return add("again", seen[id(value)][0])
    seen[id(value)] = (len(seen), value)  # kept alive: its id stays its own
    if isinstance(value, jax.Array):
        return add("array", digest(value))
    if isinstance(value, np.ndarray):
        add("array", digest(value))
        return go_on(*value.ravel().tolist()) if value.dtype.hasobject else None
    add(type(value).__module__, type(value).__qualname__)
    match value:
        case types.FunctionType():
            if _is_installed(value.__globals__.get("__name__")):
                add(_name(value))
            else:
                _update_code(sha, value.__code__)
            return go_on(_read_by(value))
        case types.MethodType():
            return go_on(value.__func__, value.__self__)
        case functools.partial():
            return go_on(value.func, value.args, value.keywords)
        case types.BuiltinFunctionType():
            add(_name(value))
            return go_on(value.__self__)
        case types.ModuleType():
            return add(value.__name__)
        case logging.Logger():
            return add(value.name)
        case property():
            return go_on(value.fget)
        case type():
            add(_name(value))
            if not _is_installed(value.__module__):
                go_on(*value.__bases__, _own(value))
            return None
        case dict():
            for key, item in value.items():
                go_on(key, item)
            return None
        case set() | frozenset():
            return add(*sorted(_hash(item) for item in value))
        case list() | tuple():
            add(len(value))
            return go_on(*value)
    if hasattr(value, "__wrapped__"):  # a function that was compiled or cached
        return go_on(value.__wrapped__)
    go_on(type(value))
    state = _state(value)
    return add(_ADDRESS.sub("", repr(value))) if state is None else go_on(state)


def _state(value: Any) -> Any:
    """What an object holds: its attributes, or what it would be pickled as."""
    slots = [
        slot
        for cls in type(value).__mro__
        for slot in np.atleast_1d(vars(cls).get("__slots__", ())).tolist()
    ]
    held = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
    if held or hasattr(value, "__dict__"):
        return held | getattr(value, "__dict__", {})
    try:
        return value.__reduce_ex__(2)
    except (TypeError, AttributeError, NotImplementedError):  # a lock, a file
        return None


def _update_code(sha: Any, code: types.CodeType) -> None:
    sha.update(code.co_code + code.co_exceptiontable)
    head = (code.co_names, code.co_varnames, code.co_freevars, code.co_argcount)
    sha.update(repr(head).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _update_code(sha, constant)
        elif isinstance(constant, frozenset):
            sha.update(repr(sorted(map(repr, constant))).encode())
        else:
            sha.update(repr(constant).encode())


def _read_by(function: types.FunctionType) -> dict[str, Any]:
    """Defaults, closure and, of a user's function, globals, by name."""
    code = function.__code__
    read: dict[str, Any] = {}
    for index, value in enumerate(function.__defaults__ or ()):
        read[f"default {index}"] = value
    read.update(function.__kwdefaults__ or {})
    cells = function.__closure__ or ()
    read.update(
        {n: _content(cell) for n, cell in zip(code.co_freevars, cells, strict=True)}
    )
    if not _is_installed(function.__globals__.get("__name__")):
        read |= read_by_name(function)
    return read


def _own(cls: type) -> dict[str, Any]:
    """The methods and constants of a class."""
    kinds = (*_PLAIN, types.FunctionType, types.MethodType, property)
    # By attribute, as Equinox wraps the methods of its modules.
    found = {name: getattr(cls, name, None) for name in vars(cls)}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, kinds)
        and name not in ("__module__", "__doc__", "__firstlineno__")
    }


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None


def _name(value: Any) -> str:
    """The name of something of a package, and the version of that."""
    module = str(getattr(value, "__module__", None))
    version = getattr(sys.modules.get(module.partition(".")[0]), "__version__", "")
    return f"{module}:{getattr(value, '__qualname__', '')} {version}"


def _is_installed(module: str | None) -> bool:
    """Whether a Python module is of the standard library or an installed package."""
    if module is None or module == "__main__":
        return False
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "pyrox_ppl":
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and any(Path(file).is_relative_to(p) for p in _PLACES)
