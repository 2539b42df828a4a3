"""The type checker that the package is imported with in tests: beartype.

`jaxtyping.jaxtyped` compares the axes of arrays between arguments, for which it binds
the arguments of every call. Where no annotation names an axis, beartype alone makes the
same checks in a tenth of the time.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Self, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable

_jaxtyped = jaxtyping.jaxtyped
# A wrong type is a TypeError, as it is to jaxtyping and to the package's own checks.
CONF = BeartypeConf(violation_type=TypeError)


def install() -> None:
    """Check the functions of the package, which must not have been imported before."""
    jaxtyping.install_import_hook("pyrox_ppl", "typecheck.check")
    jaxtyping.jaxtyped = _decorate  # the name that the hook writes above functions


def check(function: Callable) -> Callable:
    """Decorate by beartype, which cannot tell what `Self` is outside of its class."""
    hints = {k: Any if v is Self else v for k, v in function.__annotations__.items()}
    function.__annotations__ = hints
    return beartype(function, conf=CONF)


def check_nested(function: Callable) -> Callable:
    """Check a function inside another, which is made anew by every call of that.

    beartype would write a program for each; the one for a hint is written once.
    """
    hints = function.__annotations__
    if not hints:
        return function
    names = function.__code__.co_varnames[: function.__code__.co_argcount]

    def checked(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        for name in given.keys() & hints.keys():
            die_if_unbearable(given[name], hints[name], conf=CONF)
        out = function(*args, **kwargs)
        if "return" in hints:
            die_if_unbearable(out, hints["return"], conf=CONF)
        return out

    return checked


def _decorate(*, typechecker: Callable) -> Callable:
    """Stand in for `jaxtyping.jaxtyped`."""

    def decorate(part: Any) -> Any:
        if inspect.isclass(part):
            init = part.__init__
            if dataclasses.is_dataclass(part) and not hasattr(init, "__wrapped__"):
                part.__init__ = decorate(init)
            return part
        if any(map(_names_axes, part.__annotations__.values())):
            return _jaxtyped(part, typechecker=typechecker)
        checked = (check_nested if "<locals>" in part.__qualname__ else check)(part)

        @functools.wraps(part)
        def call(*args: Any, **kwargs: Any) -> Any:
            unchecked = jaxtyping.config.jaxtyping_disable
            return (part if unchecked else checked)(*args, **kwargs)

        return call

    return decorate


def _names_axes(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return any(not axis.isdigit() for axis in hint.dim_str.split())
    return any(map(_names_axes, get_args(hint)))
