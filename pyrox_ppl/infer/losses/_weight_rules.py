"""The rules of operations on weights that have not been drawn yet."""

from typing import Any

from pyrox_ppl.infer._jaxpr import CONTRACTIONS, ELEMENTWISE, STRUCTURAL
from pyrox_ppl.infer.losses._array_rules import dependence_of_results
from pyrox_ppl.infer.losses._book import Book
from pyrox_ppl.infer.losses._dependence import AxisMap, apply_nonlinear, group_axes
from pyrox_ppl.infer.losses._primitives import (
    axis_map,
    gather_map,
    is_linear,
    places,
)
from pyrox_ppl.infer.losses._uses import Lazy, Part, Path, Step, Value

Shape = tuple[int, ...]


def apply_weight_rule(
    book: Book, eqn: Any, values: list[Value], path: Path
) -> list[Value] | None:
    """The result of an operation with lazy operands; None if no rule fits."""
    name = eqn.primitive.name
    lazy = [k for k, value in enumerate(values) if value.lazy is not None]
    out = tuple(eqn.outvars[0].aval.shape)
    if len(lazy) == 2 and name in ("add", "sub", "add_any"):
        return _add_lazy(book, eqn, values, path)
    if len(lazy) != 1:
        return None
    (k,) = lazy
    value = values[k]
    result: Lazy | None = None
    action = "map"
    if name in STRUCTURAL and k == 0 and is_linear(name, eqn.params):
        if not any(values[i].dependence for i in places(name, len(values))):
            result = _restructure(eqn, _lazy(value), out)
    elif name == "neg":
        action, result = "neg", value.lazy
    elif name == "mul" or (name == "div" and k == 0):
        action, result = "scale", _repeat(_lazy(value), _shape(eqn, k), out)
    elif name in ("add", "sub", "add_any"):
        same = _shape(eqn, k) == out and not _lazy(value).repeats(out)
        action, result = (
            "shift",
            value.lazy if same and not _lazy(value).loops else None,
        )
    elif name in CONTRACTIONS:
        return _contract(book, eqn, values, k, path)
    if result is None:
        return None
    dependence = dependence_of_results(book, eqn, _all(values), path)[0]
    if action == "scale":
        # Its standard deviation is not linear in the other factor.
        dependence = apply_nonlinear([dependence], name)
        book.meet(dependence, dependence, name)
    book.steps[path] = Step(action, k)
    return [Value(dependence, result)]


def draw(book: Book, eqn: Any, values: list[Value], k: int, path: Path) -> Value:
    """Draw one lazy operand, so that it is an array like any other."""
    name = eqn.primitive.name
    shape = _shape(eqn, k)
    if name in ELEMENTWISE:
        # Repeated to the shape of the result first: each row then has its own noise.
        shape = tuple(eqn.outvars[0].aval.shape) if shape else shape
    return draw_value(book, values[k], _shape(eqn, k), shape, path, name)


def draw_value(
    book: Book, value: Value, old: Shape, shape: Shape, path: Path, by: str
) -> Value:
    """Draw an array, repeated to a shape."""
    lazy = _repeat(_lazy(value), old, shape)
    rows = lazy.repeats(shape)
    if not rows and not lazy.loops:
        book.drop(lazy, f"`{by}` takes it before it meets rows of data")
        return Value(value.dependence)
    book.steps[path] = Step("draw")
    return Value(book.add_use(path, lazy, rows, value.dependence))


def _lazy(value: Value) -> Lazy:
    if value.lazy is None:
        raise TypeError("the operand is not lazy.")
    return value.lazy


def _shape(eqn: Any, k: int) -> Shape:
    return tuple(eqn.invars[k].aval.shape)


def _all(values: list[Value]) -> list[Any]:
    return [value.dependence for value in values]


def _repeat(lazy: Lazy, old: Shape, new: Shape) -> Lazy:
    """The lazy array, repeated along axes of size 1."""
    own = tuple(o and a == b for o, a, b in zip(lazy.own, old, new, strict=True))
    return lazy._replace(own=own)


def _restructure(eqn: Any, lazy: Lazy, out: Shape) -> Lazy | None:
    """Move the axes of a lazy array; None if they cannot be told apart afterwards."""
    name, params, old = eqn.primitive.name, eqn.params, _shape(eqn, 0)
    if name == "reshape":
        return _reshape(lazy, old, out)
    shapes = [_shape(eqn, k) for k in range(len(eqn.invars))]
    if name == "gather":
        axes = gather_map(params, shapes, out)
        if any(
            new is None and axis in lazy.repeats(old)
            for axis, new in enumerate(axes.axes)
        ):
            return None
    else:
        axes = axis_map(name, params, shapes, out, 0)
    if axes is None:
        return None
    back = {new: axis for axis, new in enumerate(axes.axes) if new is not None}
    own = [
        size == 1
        or (
            axis in back
            and lazy.own[back[axis]]
            and (name != "broadcast_in_dim" or old[back[axis]] == size)
        )
        for axis, size in enumerate(out)
    ]
    parts = [_follow(name, params, part, axes, back, out) for part in lazy.parts]
    return lazy._replace(own=tuple(own), parts=tuple(parts))


def _follow(
    name: str, params: dict, part: Part, axes: AxisMap, back: dict, out: Shape
) -> Part:
    """Which entries of a weight are left after an operation."""
    region = list(part.region)
    lost = axes.moved
    if name == "slice" and params["strides"] is None:
        lost = frozenset()
        starts_stops = zip(
            params["start_indices"], params["limit_indices"], strict=True
        )
        for source, (start, stop) in zip(part.axes, starts_stops, strict=True):
            if source is not None:
                first = region[source][0]
                region[source] = (first + start, first + stop)
    sources = (back.get(axis) for axis in range(len(out)))
    kept = (None if a is None or a in lost else part.axes[a] for a in sources)
    return Part(part.weight, tuple(region), tuple(kept))


def _reshape(lazy: Lazy, old: Shape, new: Shape) -> Lazy | None:
    """Split and merge axes, as long as no group joins entries with repetitions."""
    own = [True] * len(new)
    sources: dict[int, int] = {}
    for before, after in group_axes(old, new):
        before = [axis for axis in before if old[axis] > 1]
        after = [axis for axis in after if new[axis] > 1]
        kinds = {lazy.own[axis] for axis in before}
        if len(kinds) > 1:
            return None
        for axis in after:
            own[axis] = all(kinds)
        if len(before) == len(after) == 1:
            sources[after[0]] = before[0]
    parts = _move_axes(lazy.parts, sources, len(new))
    return lazy._replace(own=tuple(own), parts=parts)


def _move_axes(
    parts: tuple[Part, ...], sources: dict[int, int], ndim: int
) -> tuple[Part, ...]:
    """The parts under new axes; `sources` maps a new axis to the old one it keeps."""
    return tuple(
        part._replace(
            axes=tuple(
                part.axes[sources[axis]] if axis in sources else None
                for axis in range(ndim)
            )
        )
        for part in parts
    )


def _add_lazy(
    book: Book, eqn: Any, values: list[Value], path: Path
) -> list[Value] | None:
    """Add two lazy arrays: sums of independent normals are normal."""
    out = tuple(eqn.outvars[0].aval.shape)
    if not all(_shape(eqn, k) for k in (0, 1)) and out:
        return None
    left, right = (_repeat(_lazy(values[k]), _shape(eqn, k), out) for k in (0, 1))
    overlap = any(a.overlaps(b) for a in left.parts for b in right.parts)
    if left.own != right.own or overlap:
        return None
    loops = tuple(sorted({*left.loops, *right.loops}))
    dependence = dependence_of_results(book, eqn, _all(values), path)[0]
    book.steps[path] = Step("sum")
    return [Value(dependence, Lazy(left.own, left.parts + right.parts, loops))]


def _contract(
    book: Book, eqn: Any, values: list[Value], k: int, path: Path
) -> list[Value] | None:
    """A matrix product or a convolution: each output sums other entries of a weight."""
    name, params, lazy = eqn.primitive.name, eqn.params, _lazy(values[k])
    old, out = _shape(eqn, k), tuple(eqn.outvars[0].aval.shape)
    batch: tuple[int, ...] = ()
    if name == "dot_general":
        batch = tuple(params["dimension_numbers"][1][k])
    elif k == 0 or params["batch_group_count"] != 1:
        return None
    if any(axis not in batch for axis in lazy.repeats(old)):
        return None  # it repeats itself where it is summed
    shapes = [_shape(eqn, i) for i in (0, 1)]
    axes = axis_map(name, params, shapes, out, k)
    if axes is None:
        return None
    back = {new: axis for axis, new in enumerate(axes.axes) if new is not None}
    own = tuple(
        size == 1 or (axis in back and lazy.own[back[axis]])
        for axis, size in enumerate(out)
    )
    result = Lazy(own, _move_axes(lazy.parts, back, len(out)), lazy.loops)
    # The standard deviation of a product is not linear in the other factor.
    linear = dependence_of_results(book, eqn, _all(values), path)
    book.meet(linear[0], linear[0], name)
    dependence = apply_nonlinear(linear, name)
    rows = result.repeats(out)
    if not rows and not lazy.loops:
        book.steps[path] = Step("hold", k)
        return [Value(dependence, result)]
    book.steps[path] = Step("contract", k)
    return [Value(book.add_use(path, result, rows, dependence))]
