"""`where`: selects parameters by globs on their names or by a predicate."""

import fnmatch
import inspect
from collections.abc import Callable, Sequence

from pyrox_ppl._parameter import Parameter

Predicate = Callable[[Parameter], bool]
Where = str | Sequence[str] | Predicate | None


def matches(name: str, pattern: str) -> bool:
    """Whether a glob matches a whole name; ``*`` also matches dots."""
    return fnmatch.fnmatchcase(name, pattern)


def matches_parameter(parameter: Parameter, pattern: str) -> bool:
    """Whether a glob matches any name of a parameter: a tied array has several."""
    return any(matches(name, pattern) for name in parameter.names)


def parse_where(where: Where, default: Predicate) -> tuple[tuple[str, ...], Predicate]:
    """Return the globs in `where` and its predicate, which is `default` for None."""
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
    return globs, lambda p: any(matches_parameter(p, glob) for glob in globs)


def check_takes_parameter(name: str, function: Callable) -> None:
    """Raise if a callable cannot be called with a Parameter alone."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin has no signature: a wrong call raises by itself
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(
            f"a callable for {name} must take one argument, the Parameter, but "
            f"{function!r} takes {signature}. Take the Parameter p and use p.name, "
            "p.shape and its other attributes."
        ) from error
