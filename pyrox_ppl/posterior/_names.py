"""Names by which another process finds classes, functions and dtypes."""

import functools
import importlib
import inspect
from typing import Any

import equinox as eqx
import ml_dtypes
import numpy as np

# Where the functions of networks are public. Their __module__ is often private.
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
    """The name by which `dtype_of` finds a dtype, with its byte order and length.

    Raises:
        ValueError: If an array of the dtype holds objects or records.
    """
    if dtype.hasobject or dtype.names is not None:
        raise ValueError(
            f"{path} is an array of dtype {dtype}, which cannot be saved: use numbers "
            "or strings of a fixed length."
        )
    return dtype.name if hasattr(ml_dtypes, dtype.name) else dtype.str


def dtype_of(name: str) -> np.dtype:
    """The dtype that :func:`dtype_name` named."""
    return np.dtype(getattr(ml_dtypes, name, name))


def is_derived(cls: type, name: str) -> bool:
    """Whether an attribute is a cached property or a dunder of a wrapper."""
    is_cached = isinstance(
        inspect.getattr_static(cls, name, None), functools.cached_property
    )
    return is_cached or (name.startswith("__") and name.endswith("__"))


def defaults_of(cls: Any) -> dict[str, Any]:
    """The default arguments of the constructor.

    Some of Equinox's networks have a lambda there: it is saved as "the default", since
    it has no name.
    """
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def name_of(value: Any, path: str) -> str:
    """``module:name``, by which Python finds the very same object."""
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
    """The name of a function that Equinox wrapped (``eqx.filter_jit``), else None.

    ``eqx.nn.MLP`` copies its activation; the copy equals the function of that name.
    """
    own = getattr(value, "__qualname__", None)
    name = f"{value.__module__}:{own}"
    is_named = isinstance(own, str) and eqx.tree_equal(_lookup(name), value) is True
    return name if is_named else None


def find(name: str) -> Any:
    """The object of a name that :func:`name_of` gave.

    Raises:
        ValueError: If there is none.
    """
    value = _lookup(name)
    if value is None:
        place, _, own = name.partition(":")
        raise ValueError(
            f"the file needs {own!r} of the Python module {place!r}, and there is "
            "none: install the module, or define it there."
        )
    return value


def _lookup(name: str) -> Any:
    place, _, own = name.partition(":")
    try:
        value = importlib.import_module(place)
    except ImportError:
        return None
    for part in own.split("."):
        value = getattr(value, part, None)
    return value
