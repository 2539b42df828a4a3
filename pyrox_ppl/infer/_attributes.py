"""The attributes that hold the state of a Python object."""

import struct
from collections.abc import Iterator
from typing import Any

_HEAP_TYPE = 1 << 9
_POINTER = struct.calcsize("P")


def attributes_of(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object, with those in slots."""
    yield from tuple(getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        for name in _slots_of(kind):
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{kind.__name__.lstrip('_')}{name}"
            if hasattr(value, name):
                yield name, getattr(value, name)


def is_python(kind: type) -> bool:
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
