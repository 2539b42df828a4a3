"""A module at every draw: blocks of points, and within a block a loop over draws."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from pyrox_ppl._dict_order import wrap_dicts
from pyrox_ppl._loop_convolutions import with_fast_convolutions
from pyrox_ppl._parameter import class_name
from pyrox_ppl.prediction._draws import Draws
from pyrox_ppl.prediction._loop import (
    CHUNK_BYTES,
    bytes_of,
    even_size,
    run_ahead,
    shapes_of_one,
)
from pyrox_ppl.prediction._matching import match_draws
from pyrox_ppl.prediction._members import give_members, plate_size
from pyrox_ppl.prediction._module_call import (
    CALL_ERRORS,
    EXAMPLE,
    ModuleCall,
    check_call,
    check_reads_draws,
    check_width,
    evaluate_draws,
    note_on_call,
)
from pyrox_ppl.prediction._point_count import differ, may_depend_on_count
from pyrox_ppl.prediction._points import Points
from pyrox_ppl.prediction._prediction import Prediction, SummaryOptions
from pyrox_ppl.prediction._tangent import on_tangent

# With more points at a time a draw's activations no longer stay in the cache.
MOST_POINTS = 256


class ModuleValues:
    """The values of a module at every draw, block by block of the points.

    Attributes:
        points: The number of points, or None where the inputs are a single one.
        block: How many points are taken at a time.
    """

    def __init__(
        self, call: ModuleCall, draws: Draws, batch_size: int | None = None
    ) -> None:
        module = call.module
        draws = on_tangent(
            draws, class_name(module) if call.name is None else call.name
        )
        self._number = draws.number
        self._module, self._values = match_draws(module, draws, call.name, call.params)
        members = plate_size(module, self._module, self._values)
        if members is not None and call.call is None:
            raise ValueError(
                f"the draws of {type(module).__name__} have one axis more than its "
                "parameters, a plate on which it was bound, or chains. If these are "
                "chains, give `batch_ndims=2`; if it is a plate, say how to call the "
                "module, every array of which has the axis of the plate: "
                "call=lambda nets, x: eqx.filter_vmap(lambda net: jax.vmap(net)(x))"
                "(nets)."
            )
        if members is not None:
            self._module, self._values = give_members(
                module, self._module, self._values, members
            )
        self._mode = self._find_mode(call, draws, members)
        self._call = call.call
        self._programs: dict[Any, Callable[[Any], Any]] = {}
        self._batched = call.takes_all_points
        check_call(call)
        self._inputs = Points.find(call.args, call.kwargs, self._batched)
        self.points = self._inputs.number
        if not self._batched and self.points is None:
            raise ValueError(
                f"{type(module).__name__} takes one point, so predict maps it over the "
                "leading axis of its inputs, and none of them has one: give arrays, a "
                f"single point as x[None], or say how to call it: {EXAMPLE}."
            )
        if not self._batched:
            check_width(call)
        self.block = 1 if self.points is None else self._block_size(batch_size)
        self._refuse_ambiguous_inputs()
        check_reads_draws(call, self._module, self._values, self._inputs)

    def _find_mode(
        self, call: ModuleCall, draws: Draws, members: int | None
    ) -> dict[int, jax.Array]:
        """The values around which the module is linearised, as draws of its leaves."""
        if not draws.linearized_at:
            return {}
        trained, values = match_draws(
            call.module, draws.at_linearization(), call.name, call.params
        )
        if members is not None:
            _, values = give_members(call.module, trained, values, members)
        if values.keys() != self._values.keys():
            raise ValueError(
                "the tree says around which values the module is linearised, but not "
                "for all of its drawn parameters: keep the group 'linearized_at' as "
                "`to_datatree` made it."
            )
        return values

    def _block_size(self, batch_size: int | None) -> int:
        points = self.points or 0
        # The user's function may hold arrays of all points: do not ask it for one.
        some = points if self._call is not None else min(1, points)
        one = bytes_of(self._shape_at(some)) // max(1, some)
        most = min(MOST_POINTS, CHUNK_BYTES // max(1, one))
        block = even_size(points, batch_size or most) if points else 0
        if block == points or not self._batched or not self._points_interact(block):
            return block
        if batch_size is not None:
            raise ValueError(
                f"the values of {type(self._module).__name__} at a point depend on the "
                "other points, on its place among them or on their number, so blocks "
                f"of {block} give other values: leave batch_size out, and all {points} "
                "points are taken at once."
            )
        return points

    def _points_interact(self, block: int) -> bool:
        """Whether the value at a point depends on the points beside it.

        The last points of a block become the first of another one, and the points
        before them come after them, changed. The values at the former must stay the
        same. All draws are evaluated, since that program is needed anyway. Where it may
        depend on the number of points, one draw is evaluated at all of them.
        """
        points = self.points or 0
        whole = self._shape_at(points)
        try:
            part = self._shape_at(block)
        except CALL_ERRORS:
            return True  # It takes all points, and no part of them.
        if (whole.shape[:1], part.shape[:1]) != ((points,), (block,)) or (
            whole.shape[1:] != part.shape[1:]
        ):
            return True
        half = block // 2
        before = np.asarray(self._at(0, block))
        if block == 1:
            both = np.asarray(self._at(0, 2))
            is_same = not differ(both, np.concatenate([before, self._at(1, 1)], 1))
        else:
            turned = self._inputs.turned_block(block, block - half)
            after = np.asarray(self._of_all_draws(turned))
            is_same = not differ(before[:, block - half :], after[:, :half])
        some, every = (self._inputs.block(0, size) for size in (block, points))
        if not is_same or not may_depend_on_count(self._of_all_draws, some, every):
            return not is_same
        return differ(before[:1], np.asarray(self._of_first_draw(every))[:, :block])

    def _refuse_ambiguous_inputs(self) -> None:
        """Raise where an input may be a value for each point as well as shared."""
        mapped = self._inputs.mapped()
        is_clear = mapped.sliced == self._inputs.sliced or self.points in (None, 1)
        if self._batched or is_clear:
            return
        try:
            self._shape_of(mapped.block(0, 1))
        except (TypeError, ValueError):
            return  # The module takes it only as a whole.
        raise ValueError(
            f"among the inputs of shape {self._inputs.shapes()}, one with fewer axes "
            f"may hold a value for each of the {self.points} points, or be shared by "
            f"all of them: {type(self._module).__name__} accepts both. Say which: "
            "call=lambda net, *inputs: jax.vmap(net, in_axes)(*inputs)."
        )

    def _advise_on_vectors(self, error: Exception, size: int) -> None:
        """Raise anew where the module takes one value of what it was given whole."""
        mapped = self._inputs.mapped()
        if self._batched or mapped.sliced == self._inputs.sliced:
            return
        try:
            self._shape_of(mapped.block(0, size))
        except CALL_ERRORS:
            return
        raise ValueError(
            f"among the inputs of shape {self._inputs.shapes()}, one with fewer axes "
            f"is shared by all points, but {type(self._module).__name__} takes one "
            f"value of it for each of the {self.points} points. Say so: "
            "call=lambda net, *inputs, **named: jax.vmap(net)(*inputs, **named)."
        ) from error

    def _at(self, start: int, size: int) -> jax.Array:
        return self._of_all_draws(self._inputs.block(start, size))

    def _of_all_draws(self, points: Points) -> jax.Array:
        """The values of every draw at some points."""
        out = self._evaluate(self._values, points, self._number)
        # Where all draws are alike, one of them was evaluated.
        return jnp.broadcast_to(out, (self._number, *out.shape[1:]))

    def _evaluate(
        self, values: dict[int, jax.Array], points: Points, number: int
    ) -> Any:
        parts = (wrap_dicts(self._module), values, self._mode, points)
        if self._call is None:
            return _evaluate_draws(*parts, number, self._batched)
        return self._evaluate_call(parts, number)

    def _evaluate_call(self, parts: tuple, number: int) -> Any:
        """Evaluate the user's function in a program of this object's own.

        What the function closes over may have changed since an earlier prediction, so
        no program outlives this one.
        """
        arrays, rest = eqx.partition(parts, eqx.is_array)
        size = parts[-1].number
        if (size, number) not in self._programs:

            def run(arrays: Any) -> Any:
                module, values, mode, points = eqx.combine(arrays, rest)
                return evaluate_draws(
                    module, values, mode, points, number, True, self._call
                )

            self._programs[size, number] = jax.jit(with_fast_convolutions(run))
        return self._programs[size, number](arrays)

    def _shape_at(self, size: int) -> jax.ShapeDtypeStruct:
        """The shape of the values of one draw at `size` points."""
        try:
            out = self._shape_of(self._inputs.block(0, size))
        except CALL_ERRORS as error:
            self._advise_on_vectors(error, size)
            error.add_note(
                note_on_call(self._module, self._inputs, self._call, self._batched)
            )
            raise
        if not hasattr(out, "shape"):
            subject = type(self._module).__name__ if self._call is None else "`call`"
            raise ValueError(
                f"predictions are of one array, and {subject} returns "
                f"{jax.tree.structure(out)}: choose one of its outputs, "
                "call=lambda net, *inputs: net(*inputs)[0]."
            )
        return shapes_of_one(out)

    def _of_first_draw(self, points: Points) -> Any:
        one = {position: value[:1] for position, value in self._values.items()}
        return self._evaluate(one, points, 1)

    def _shape_of(self, points: Points) -> Any:
        return jax.eval_shape(lambda: self._of_first_draw(points))

    def blocks(self, progress_bar: bool = False) -> Iterator[tuple[Any, np.ndarray]]:
        """Yield slices of the points, and the values there of all draws."""
        points = self.points
        if points is None or self.block == points:
            yield ..., np.asarray(self._at(0, points or 1))
            return
        starts = tqdm(
            range(0, points, self.block),
            desc="predict",
            disable=not progress_bar,
            delay=2.0,
        )
        # The last block begins earlier, so that all have one shape.
        begins = (min(start, points - self.block) for start in starts)
        started = ((begin, self._at(begin, self.block)) for begin in begins)
        for begin, values in run_ahead(started):
            yield slice(begin, begin + self.block), np.asarray(values)

    def shape(self) -> jax.ShapeDtypeStruct:
        """The shape of the values of one draw at all points."""
        return self._shape_at(1 if self.points is None else self.points)


def predict_module(
    call: ModuleCall, draws: Draws, options: SummaryOptions
) -> Prediction:
    """Summarise a module's values over all draws (see :func:`~pyrox_ppl.predict`)."""
    values = ModuleValues(call, draws, options.batch_size)
    one = values.shape()
    summary = Prediction.empty(one.shape, one.dtype, options.quantiles)
    for where, block in values.blocks(options.progress_bar):
        summary.fill(where, block)
    return summary


# JAX keeps one program for every structure and shape, from call to call: all that the
# program depends on is among the arguments.
_evaluate_draws = eqx.filter_jit(evaluate_draws)
