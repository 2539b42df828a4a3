"""What passes into an iteration of a loop, on to the next one, and out of the loop."""

from typing import Any

from pyrox_ppl.infer.losses._book import Book
from pyrox_ppl.infer.losses._dependence import Rows, State, Sum, made_inside
from pyrox_ppl.infer.losses._uses import Lazy, Part, Path, Value
from pyrox_ppl.infer.losses._weight_rules import draw_value


def slice_value(book: Book, value: Value, var: Any, level: int, path: Path) -> Value:
    """One iteration's part of an array that a loop runs over."""
    shape = tuple(var.aval.shape)
    lazy = value.lazy
    if lazy is not None and not lazy.own[0]:
        value = draw_value(book, value, shape, shape, path, "scan")
        lazy = None
    dependence = {
        noise: state._replace(
            axes=tuple(
                level if axis == 0 else axis - 1 if axis > 0 else axis
                for axis in state.axes
            )
        )
        if isinstance(state, Rows)
        else state
        for noise, state in value.dependence.items()
    }
    if lazy is None:
        return Value(dependence)
    parts = tuple(Part(part.weight, part.region, part.axes[1:]) for part in lazy.parts)
    return Value(dependence, Lazy(lazy.own[1:], parts, lazy.loops))


def carried_states(value: Value, level: int, path: Path) -> dict[Any, State]:
    """The state of a carried value: rows of one iteration are not those of another."""
    return {
        noise: Sum()
        if isinstance(state, Rows)
        and (level in state.axes or made_inside(state.view, path))
        else state
        for noise, state in value.dependence.items()
    }


def stacked_state(state: State, level: int) -> State:
    """The state of the results of all iterations, stacked along a new first axis."""
    if not isinstance(state, Rows):
        return state
    axes = (0 if a == level else a if a < 0 else a + 1 for a in state.axes)
    return Rows(tuple(axes), state.view)
