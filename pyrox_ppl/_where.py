"""`where`: which parameters, by globs on their names or a predicate."""

import fnmatch
import inspect
from collections.abc import Callable, Sequence

from pyrox_ppl._parameter import Parameter

Predicate = Callable[[Parameter], bool]
Where = str | Sequence[str] | Predicate | None


def matches(name: str, pattern: str) -> bool:
    """Whether a glob matches a whole name; ``*`` goes across dots."""
    return fnmatch.fnmatchcase(name, pattern)


def names_match(parameter: Parameter, pattern: str) -> bool:
    """Whether a glob matches a name of a parameter: a tied array has several."""
    return any(matches(name, pattern) for name in parameter.names)


def selection(where: Where, default: Predicate) -> tuple[tuple[str, ...], Predicate]:
    """The globs of `where`, and the predicate that they make; `default` for None."""
    if where is None:
        return (), default
    if callable(where):
        check_takes_parameter("where", where)
        return (), where
    patterns = (where,) if isinstance(where, str) else where
    is_sequence = isinstance(patterns, Sequence) and len(patterns) > 0
    if not is_sequence or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            "where must be a glob, a sequence of globs or a predicate on Parameter, "
            f"got {where!r}."
        )
    globs = tuple(patterns)
    return globs, lambda p: any(names_match(p, glob) for glob in globs)


def check_takes_parameter(name: str, function: Callable) -> None:
    """Raise if a callable cannot be called with a Parameter alone."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin without a signature: the call will say
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(
            f"a callable for {name} takes one argument, the Parameter, and "
            f"{function!r} takes {signature}: of a Parameter p, p.name and p.shape are "
            "the name and the shape."
        ) from error
