"""The names under which classes, functions and dtypes are found in another process."""

import functools
import importlib
import inspect
from typing import Any

import equinox as eqx
import ml_dtypes
import numpy as np

# Where the functions of networks are public; their own __module__ often is not.
_PUBLIC = (
    "jax.nn",
    "jax.numpy",
    "jax.lax",
    "jax.scipy.special",
    "equinox.nn",
    "numpy",
    "pyrox_ppl",
    "pyrox_ppl.nn",
)


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


def is_remade(cls: type, name: str) -> bool:
    """Whether an attribute is a wrapper's name, or computed where it is needed."""
    is_cached = isinstance(
        inspect.getattr_static(cls, name, None), functools.cached_property
    )
    return is_cached or (name.startswith("__") and name.endswith("__"))


def defaults_of(cls: Any) -> dict[str, Any]:
    """What the constructor takes for each argument that is not given.

    Equinox's networks have a lambda there, which has no name of its own.
    """
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def name_of(value: Any, path: str) -> str:
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


def name_of_wrapped(value: eqx.Module) -> str | None:
    """The name of a function that Equinox wrapped (``eqx.filter_jit``), if it is one.

    A copy of it, as ``eqx.nn.MLP`` makes of its activation, bears the same name.
    """
    own = getattr(value, "__qualname__", None)
    name = f"{value.__module__}:{own}"
    is_named = isinstance(own, str) and eqx.tree_equal(_lookup(name), value) is True
    return name if is_named else None


def find(name: str) -> Any:
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
