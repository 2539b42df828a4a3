"""How an array depends on the rows of some noise: one by one, as a sum, or mixed.

An array that is computed from noise with one row for each datum is in one of three
states. `Rows`: an entry depends on one row at most, and the entry's indices say on
which. `Sum`: each entry is a sum of terms, and a term depends on one row at most.
`Mixed`: anything else. A sum of log-densities in one of the first two states keeps its
expectation if each row of the noise is drawn on its own.
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple


class Rows(NamedTuple):
    """An entry depends on one row at most.

    Attributes:
        axes: The axes whose indices choose the row. A negative number counts the loops
            around: the iteration chooses.
        view: Names the map from these indices to the row. Two arrays with the same axes
            and the same view depend on the same row at the same index.
    """

    axes: tuple[int, ...]
    view: Hashable = "row"


class Sum(NamedTuple):
    """Each entry is a sum of terms that depend on one row each."""


class Mixed(NamedTuple):
    """An entry depends on several rows.

    Attributes:
        by: The operation that mixed them.
    """

    by: str


State = Rows | Sum | Mixed
# The noise is named by the use of weights that draws it, and the axis of its rows.
Dependence = Mapping[tuple[Any, int], State]


def add_states(parts: Iterable[Dependence]) -> dict[tuple[Any, int], State]:
    """The dependence of a sum, or of a choice of one of the parts."""
    joined: dict[tuple[Any, int], State] = {}
    for part in parts:
        for noise, state in part.items():
            before = joined.get(noise, state)
            if isinstance(before, Mixed) or before == state:
                joined[noise] = before
            else:
                joined[noise] = state if isinstance(state, Mixed) else Sum()
    return joined


def multiply_states(
    left: Dependence, right: Dependence, by: str
) -> dict[tuple[Any, int], State]:
    """The dependence of a product: linear in the noise of one factor."""
    both = {
        noise: mix_unequal([left, right], noise, by) for noise in left if noise in right
    }
    return {**left, **right, **both}


def apply_nonlinear(
    parts: Iterable[Dependence], by: str
) -> dict[tuple[Any, int], State]:
    """The dependence of any function of the parts, entry by entry."""
    parts = list(parts)
    noises = {noise for part in parts for noise in part}
    return {noise: mix_unequal(parts, noise, by) for noise in noises}


def mix_unequal(parts: Iterable[Dependence], noise: Any, by: str) -> State:
    """One state for one noise: that of all parts if they agree on the rows."""
    states = {part[noise] for part in parts if noise in part}
    for state in states:
        if isinstance(state, Mixed):
            return state
    (first, *others) = states
    return Mixed(by) if others or isinstance(first, Sum) else first


class AxisMap(NamedTuple):
    """Where the axes of an operand are in the result.

    Attributes:
        axes: The new axis of each axis; None if the operation combines its entries.
        moved: The axes whose entries are others, or in another order.
    """

    axes: tuple[int | None, ...]
    moved: frozenset[int] = frozenset()

    def move(self, rows: Rows, token: Hashable, combined: State) -> State:
        """The state of the result; `combined` if the rows are combined."""
        if any(axis >= 0 and self.axes[axis] is None for axis in rows.axes):
            return combined
        axes = tuple(a if a < 0 else self.axes[a] for a in rows.axes)
        view = (token, rows.view) if self.moved & set(rows.axes) else rows.view
        return Rows(axes, view)  # pyright: ignore[reportArgumentType] no None is left


def drop_short_axes(rows: Rows, shape: tuple[int, ...]) -> Rows:
    """Leave out axes with a single index, which choose nothing."""
    axes = tuple(a for a in rows.axes if a < 0 or shape[a] > 1)
    return rows._replace(axes=axes)


def reshape_rows(
    rows: Rows, old: tuple[int, ...], new: tuple[int, ...], token: Hashable
) -> State:
    """The state after a reshape: its groups of axes are split and merged."""
    loops = tuple(axis for axis in rows.axes if axis < 0)
    here = rows.axes[len(loops) :]
    if any(axis < 0 for axis in here):
        return Sum()
    groups = [
        ([a for a in before if old[a] > 1], [a for a in after if new[a] > 1])
        for before, after in group_axes(old, new)
    ]
    touched = [group for group in groups if set(group[0]) & set(here)]
    sources = tuple(axis for before, _ in touched for axis in before)
    targets = tuple(axis for _, after in touched for axis in after)
    sizes = tuple(new[axis] for axis in targets)
    view = rows.view
    if sources != here:
        if len(touched) != 1:
            return Rows((*loops, *targets), (token, view))
        # The row is chosen by a part of the merged index: remember which, to split it.
        positions = tuple(sources.index(axis) for axis in here)
        merged = ("part", tuple(old[a] for a in sources), positions, view)
        return Rows((*loops, *targets), merged)
    if isinstance(view, tuple) and view[0] == "part" and view[1] == sizes:
        return Rows((*loops, *(targets[p] for p in view[2])), view[3])
    return Rows((*loops, *targets), view)


def group_axes(
    old: tuple[int, ...], new: tuple[int, ...]
) -> list[tuple[list[int], list[int]]]:
    """Pair the fewest consecutive axes whose sizes have the same product."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        before, after = [], []
        while True:
            sizes = math.prod(old[a] for a in before), math.prod(new[a] for a in after)
            if (before or after) and sizes[0] == sizes[1]:
                break
            if i < len(old) and (sizes[0] <= sizes[1] or j == len(new)):
                before.append(i)
                i += 1
            else:
                after.append(j)
                j += 1
        groups.append((before, after))
    return groups


def made_inside(view: Hashable, path: tuple) -> bool:
    """Whether an operation below `path` made a view."""
    if not isinstance(view, tuple):
        return False
    if view[0] == "part":
        return made_inside(view[3], path)
    token, inner = view
    return token[: len(path)] == path or made_inside(inner, path)
