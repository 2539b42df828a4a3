"""What a Python function does, in a hash that is the same in every process."""

import enum
import hashlib
import logging
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import jax

from pyrox_ppl.infer._arrays import digest
from pyrox_ppl.infer._content_key import PLAIN, OfProcess, Same, Unseen, content_key
from pyrox_ppl.infer._names_read import is_installed, read_by_name

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def describe_code(function: Any, name: str) -> dict[str, str]:
    """Hash a function, and each thing that it closes over or reads.

    A function counts by its bytecode, its defaults, the values of its closure and the
    globals that it names; an object by its class and its attributes; an array by its
    contents; what a library holds under a name, by that name and the library's version.

    Returns:
        Hashes (short values in plain text), by `name` and by ``name: variable``.
    """
    described = {name: hash_content(function)}
    while not isinstance(function, types.FunctionType):  # a method, a partial
        inner = getattr(function, "func", getattr(function, "__func__", None))
        if inner is None:
            return described
        function = inner
    for variable, value in _read_by(function).items():
        described[f"{name}: {variable}"] = show(value, hash_content)
    return described


def show(value: Any, hash_of: Callable[[Any], str]) -> str:
    """A short plain value in plain text, anything else as its hash."""
    if isinstance(value, PLAIN) and len(repr(value)) < 40:
        return f"{type(value).__name__} {value!r}"
    return hash_of(value)


def hash_content(value: Any) -> str:
    """Hash the :func:`content_key` of an object, without what only this process has."""
    return _hash_key(content_key(value)[0])


def _hash_key(key: Any) -> str:
    sha = hashlib.sha256()
    _Reading(sha).add(key)
    return sha.hexdigest()[:16]


class _Reading:
    """Adds keys to a hash: names in place of identities."""

    def __init__(self, sha: Any) -> None:
        self._sha = sha
        self._places: dict[int, int] = {}
        self._visited: list[Any] = []  # kept alive, so that no id is used twice

    def add(self, key: Any) -> None:
        """Add a key, or a part of one."""
        match key:
            case OfProcess():
                pass
            case Same():
                self._write(_portable(key.value))
            case Unseen():
                self._add_unseen(key.value)
            case frozenset():
                self._write(sorted(_hash_key(part) for part in key))
            case tuple():
                self._write(len(key))
                for part in key:
                    self.add(part)
            case type():
                self._write(key.__qualname__)
            case _:
                self._write(repr(key))

    def _write(self, word: Any) -> None:
        self._sha.update(f"{word}\0".encode())

    def _add_unseen(self, value: Any) -> None:
        """Add an object by what it would be pickled as."""
        if id(value) in self._places:
            return self._write(f"again {self._places[id(value)]}")
        self._places[id(value)] = len(self._visited)
        self._visited.append(value)
        if isinstance(value, set | frozenset):
            return self._write(sorted(hash_content(item) for item in value))
        try:
            state = value.__reduce_ex__(2)
        except (TypeError, AttributeError, NotImplementedError):  # a lock, a file
            state = _ADDRESS.sub("", repr(value)), getattr(value, "__dict__", {})
        return self.add(content_key(state)[0])


def _portable(value: Any) -> Any:
    """What stands in another process for an object that a key holds by identity."""
    match value:
        case types.CodeType():
            return _code_parts(value)
        case jax.Array():
            return digest(value)
        case dict():  # the globals of a function, of which the key has what it reads
            return "globals"
        case enum.Enum() | logging.Logger():
            return type(value).__qualname__, value.name
        case types.ModuleType():
            return value.__name__
    if callable(value):
        return _name(value)
    if hasattr(value, "shape"):  # an array of a loader, maybe on disk
        return digest(value)
    return type(value).__qualname__, _ADDRESS.sub("", repr(value))


def _code_parts(code: types.CodeType) -> tuple:
    """All that decides what code does, and not where it was written."""
    constants: list[Any] = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            constants.append(_code_parts(constant))
        elif isinstance(constant, frozenset):
            constants.append(sorted(map(repr, constant)))
        else:
            constants.append(repr(constant))
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_argcount
    return code.co_code, code.co_exceptiontable, names, constants


def _read_by(function: types.FunctionType) -> dict[str, Any]:
    """Defaults, closure and, of a user's function, globals, by name."""
    code = function.__code__
    defaults = function.__defaults__ or ()
    read: dict[str, Any] = {f"default {i}": value for i, value in enumerate(defaults)}
    read |= function.__kwdefaults__ or {}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            read[name] = cell.cell_contents
        except ValueError:  # a name that has no value yet
            read[name] = None
    return read if is_installed(code.co_filename) else read | read_by_name(function)


def _name(value: Any) -> str:
    """The name of something in a module, and the version of its package."""
    module = str(getattr(value, "__module__", None))
    version = getattr(sys.modules.get(module.partition(".")[0]), "__version__", "")
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    return f"{module}:{name} {version}"
