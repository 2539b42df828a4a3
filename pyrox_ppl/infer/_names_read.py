"""What a function reads by name, and what of it belongs to a library."""

import dis
import functools
import os
import random
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox
import jax
import jaxlib
import numpy as np
import numpyro

# Packages that every model reaches count wherever they lie, in a developer's checkout,
# say.
_PACKAGES = (jax, jaxlib, np, numpyro, equinox)
_LIBRARIES = (
    *(sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(os.path.dirname(str(package.__file__)) for package in _PACKAGES),
    str(Path(__file__).parents[1]),
)
_INSTALLED = "<frozen", *(os.path.join(folder, "") for folder in _LIBRARIES)
_BY_STRING = frozenset({"globals", "eval"})
_IMPORT = frozenset({"import_module", "__import__", "modules"})
_ANY_ATTRIBUTE = frozenset(
    {"getattr", "vars", "attrgetter", "methodcaller", "__dict__"}
)
_HIDDEN_STATE = (random, np, np.random)


def is_installed(file: str) -> bool:
    """Whether code is of a library, whose globals no user sets."""
    return file.startswith(_INSTALLED) or _is_recorded(file)


@functools.cache
def _is_recorded(file: str) -> bool:
    """Whether a package manager put a file into a folder of ``sys.path``.

    Such folders need not be this environment's own: ``pip install --user`` and
    ``--target``, and Linux's own packages, have others. No record has the code of an
    editable install.
    """
    return any(
        folder and file.startswith(os.path.join(folder, "")) and _records(folder, file)
        for folder in sys.path
    )


def _records(folder: str, file: str) -> bool:
    """Whether a file within a folder was installed there."""
    if os.path.basename(folder) in ("site-packages", "dist-packages"):
        return True
    return Path(file).relative_to(folder).as_posix() in _recorded_files(folder)


@functools.cache
def _recorded_files(folder: str) -> frozenset[str]:
    """The files that a package manager recorded in a folder, read once."""
    return frozenset(
        line.partition(",")[0]
        for record in Path(folder).glob("*.dist-info/RECORD")
        for line in record.read_text(encoding="utf-8").splitlines()
    )


def is_held_by_a_library(value: Any) -> bool:
    """Whether a library holds the object under its name, so that no user changes it."""
    name, where = (getattr(value, n, None) for n in ("__qualname__", "__module__"))
    if not (callable(value) and isinstance(name, str) and isinstance(where, str)):
        return False
    held: Any = sys.modules.get(where)
    if held is None or not is_installed(getattr(held, "__file__", None) or "<"):
        return False
    for part in name.split("."):
        held = getattr(held, part, None)
    return held is value


def file_of(kind: type) -> str:
    """The file that defines a class; "<" for a class that was made by a call."""
    if kind.__module__ == "builtins":
        return "<frozen"
    module = None if kind.__module__ == "types" else sys.modules.get(kind.__module__)
    return getattr(module, "__file__", None) or "<"


def read_by_name(function: types.FunctionType) -> dict[str, Any]:
    """The globals that a function names, and what it may read of the user's modules.

    A module counts by those of its attributes that the code names, or by all of them
    where the code looks attributes up by strings. Modules that are imported within the
    function count as well.
    """
    code, known = function.__code__, function.__globals__
    names, strings = set(_names(code)), set(_strings(code))
    looked_up = strings if names & _BY_STRING else set()
    named = {name: known[name] for name in names | looked_up if name in known}
    for name in names | strings if names & _IMPORT else names:
        for full in (name, f"{known.get('__package__')}.{name}"):
            if full in sys.modules and full not in named:
                named[full] = sys.modules[full]
    named = dict(sorted(named.items()))
    read = {n: value for n, value in named.items() if n in known or _is_own(value)}
    visited: set[str] = set()
    for name, value in named.items():
        read |= _parts(name, value, names, bool(names & _ANY_ATTRIBUTE), visited)
    return read


def read_of_process(function: types.FunctionType) -> dict[str, Any]:
    """What a function may read of the process that it runs in.

    The variables of the environment, and the hidden generator behind
    ``np.random.normal`` and ``random.random``.
    """
    code, known = function.__code__, function.__globals__
    names = set(_names(code))
    read: dict[str, Any] = {}
    if names & {"environ", "getenv"}:
        read["the environment"] = dict(os.environ)
    return read | dict(_bound_to_hidden(code, known))


def _parts(
    path: str, module: Any, names: set[str], whole: bool, visited: set[str]
) -> Iterator[tuple[str, Any]]:
    """The attributes that are read of a user's own module and of modules within it.

    Each module is visited once: packages refer to each other.
    """
    if not _is_own(module) or module.__name__ in visited:
        return
    visited.add(module.__name__)
    for name, value in sorted(vars(module).items()):
        if name in names or (whole and not name.startswith("__")):
            yield f"{path}.{name}", value
            yield from _parts(f"{path}.{name}", value, names, whole, visited)


def _is_own(value: Any) -> bool:
    """Whether a value is a Python module of the user's."""
    if not isinstance(value, types.ModuleType):
        return False
    file = getattr(value, "__file__", None)
    if file is None:  # built in, or made by hand
        return value.__name__ not in sys.stdlib_module_names
    return not is_installed(file)


def _bound_to_hidden(
    code: types.CodeType, known: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Functions of NumPy and Python that are methods of a hidden generator."""
    for path in _paths(code):
        value = known.get(path[0])
        if not any(value is module for module in _HIDDEN_STATE):
            continue
        for name in path[1:]:
            value = getattr(value, name, None)
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType | type):
            yield ".".join(path), value


def _paths(code: types.CodeType) -> Iterator[tuple[str, ...]]:
    """The dotted names in a function's code: ``("np", "random", "normal")``."""
    path: tuple[str, ...] = ()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            path = (instruction.argval,)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and path:
            path = (*path, instruction.argval)
            yield path
        else:
            path = ()
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _paths(part)


def _names(code: types.CodeType) -> Iterator[str]:
    """The names in a function's code and in the code of functions within it."""
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _names(part)


def _strings(constant: Any) -> Iterator[str]:
    """The strings among the constants of a function's code."""
    if isinstance(constant, str):
        yield constant
    elif isinstance(constant, types.CodeType):
        for part in constant.co_consts:
            yield from _strings(part)
    elif isinstance(constant, tuple | frozenset):
        for part in constant:
            yield from _strings(part)
