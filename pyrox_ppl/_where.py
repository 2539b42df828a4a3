"""`where`: which parameters, by globs on their names or a predicate."""

import fnmatch
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
