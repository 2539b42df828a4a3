"""Predictions of a module: blocks of points, and within a block a loop over draws."""

import inspect
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from pyrox_ppl._bind import AbstractModule, _mark_bound
from pyrox_ppl._dict_order import rebuild, unwrap_dicts, wrap_dicts
from pyrox_ppl.prediction._draws import Draws
from pyrox_ppl.prediction._loop import CHUNK_BYTES, bytes_of, even_size
from pyrox_ppl.prediction._matching import members_of, parameter_draws
from pyrox_ppl.prediction._points import Points
from pyrox_ppl.prediction._prediction import Prediction

# With more points at a time a draw's activations no longer stay in the cache.
MOST_POINTS = 256


class Function:
    """A module at all of its draws, evaluated block by block.

    Attributes:
        points: The number of points, or None where the inputs are a single one.
        block: How many points are taken at a time.
    """

    def __init__(
        self,
        module: eqx.Module,
        draws: Draws,
        inputs: tuple,
        kwargs: dict[str, Any],
        *,
        name: str | None,
        params: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> None:
        self._number = draws.number
        self._module, self._values = parameter_draws(module, draws, name, params)
        trained = jax.tree.leaves(self._module)
        if members_of(jax.tree.leaves(module), trained, self._values) is not None:
            raise ValueError(
                f"the draws of {type(module).__name__} have an axis of the plate it "
                "was bound on (or of chains: `batch_ndims=2`): predict with the model, "
                "or with `modules_from_draws` and `eqx.filter_vmap`."
            )
        self._batched = isinstance(module, AbstractModule)
        _check_call(module, inputs, kwargs)
        self._inputs = Points.of(inputs, kwargs, self._batched)
        self.points = self._inputs.number
        if not self._batched and self.points is None:
            raise ValueError(
                f"{type(module).__name__} takes one point, so predict maps it over the "
                "leading axis of its inputs, and none of them has one: give arrays, a "
                "single point as x[None]."
            )
        self.block = 1 if self.points is None else self._block(batch_size)
        self._refuse_either_way()

    def _block(self, batch_size: int | None) -> int:
        points = self.points or 0
        one = self._shape_at(min(1, points))
        most = min(MOST_POINTS, CHUNK_BYTES // max(1, bytes_of(one)))
        block = even_size(points, batch_size or most) if points else 0
        if block == points or not self._batched or not self._depends(block):
            return block
        if batch_size is not None:
            raise ValueError(
                f"the values of {type(self._module).__name__} at a point depend on the "
                "other points, or on its place among them, so blocks of "
                f"{block} give other values: leave batch_size out, and all {points} "
                "points are taken at once."
            )
        return points

    def _depends(self, block: int) -> bool:
        """Whether the value at a point depends on the points beside it.

        Points that were last in a block come first in another one, and what was before
        them comes after, changed: the values at them must not. This is a program that
        is needed anyway. The first draws would do, but would be another program.
        """
        points = self.points or 0
        whole, part = self._shape_at(points), self._shape_at(block)
        if (whole.shape[:1], part.shape[:1]) != ((points,), (block,)) or (
            whole.shape[1:] != part.shape[1:]
        ):
            return True
        if block == 1:
            both = np.asarray(self._at(0, 2))
            apart = np.concatenate([self._at(0, 1), self._at(1, 1)], 1)
            return _differ(both, apart)
        half = block // 2
        before = np.asarray(self._at(0, block))
        turned = self._inputs.at(0, block).turned(block - half)
        after = np.asarray(self._evaluate(turned))
        return _differ(before[:, block - half :], after[:, :half])

    def _refuse_either_way(self) -> None:
        """Raise where an input may be a value for each point as well as shared."""
        mapped = self._inputs.mapped()
        is_clear = mapped.sliced == self._inputs.sliced or self.points in (None, 1)
        if self._batched or is_clear:
            return
        try:
            self._shape_of(mapped.at(0, 1))
        except (TypeError, ValueError):
            return  # The module takes it whole, and only so.
        raise ValueError(
            f"of the inputs of shape {self._inputs.shapes()}, what has fewer axes may "
            f"be a value for each of the {self.points} points, or shared by all of "
            f"them, and {type(self._module).__name__} takes it both ways. Map it as "
            "you mean it: `modules_from_draws` and `eqx.filter_vmap`."
        )

    def _at(self, start: int, size: int) -> jax.Array:
        return self._evaluate(self._inputs.at(start, size))

    def _evaluate(self, points: Points) -> jax.Array:
        module = wrap_dicts(self._module)
        values = _evaluate(module, self._values, points, self._batched)
        if not self._values:  # one draw stands for all
            values = jnp.broadcast_to(values, (self._number, *values.shape[1:]))
        return values

    def _shape_at(self, size: int) -> jax.ShapeDtypeStruct:
        """Of the values of one draw at so many points."""
        try:
            out = self._shape_of(self._inputs.at(0, size))
        except (TypeError, ValueError) as error:
            error.add_note(_note(self._module, self._inputs, self._batched))
            raise
        if not hasattr(out, "shape"):
            raise ValueError(
                f"predict summarises modules that return one array, and "
                f"{type(self._module).__name__} returns {jax.tree.structure(out)}: "
                "take the modules of all draws, `modules_from_draws`, and "
                "`eqx.filter_vmap` over them, or predict with the model."
            )
        return jax.ShapeDtypeStruct(out.shape[1:], out.dtype)

    def _shape_of(self, points: Points) -> Any:
        one = {position: value[:1] for position, value in self._values.items()}
        return jax.eval_shape(
            lambda: _evaluate(wrap_dicts(self._module), one, points, self._batched)
        )

    def blocks(self, progress_bar: bool = False) -> Any:
        """Yield slices of the points, and the values there of all draws.

        The next block is under way while the last one is looked at.
        """
        points = self.points
        if points is None or self.block == points:
            yield ..., np.asarray(self._at(0, points or 1))
            return
        starts = range(0, points, self.block)
        waiting = None
        for start in tqdm(starts, desc="predict", disable=not progress_bar, delay=2.0):
            # The last block begins earlier, so that all have one shape.
            begin = min(start, points - self.block)
            running = self._at(begin, self.block)
            if waiting is not None:
                yield waiting[0], np.asarray(waiting[1])
            waiting = slice(begin, begin + self.block), running
        if waiting is not None:
            yield waiting[0], np.asarray(waiting[1])

    def shape(self) -> jax.ShapeDtypeStruct:
        """Of the values of one draw at all points."""
        return self._shape_at(1 if self.points is None else self.points)


def predict_function(
    module: eqx.Module,
    draws: Draws,
    inputs: tuple,
    kwargs: dict[str, Any],
    *,
    name: str | None,
    params: Mapping[str, Any] | None,
    quantiles: tuple[float, ...],
    batch_size: int | None,
    progress_bar: bool,
) -> Prediction:
    """Summarise a module's values over all draws (see :func:`~pyrox_ppl.predict`)."""
    function = Function(
        module, draws, inputs, kwargs, name=name, params=params, batch_size=batch_size
    )
    value = function.shape()
    out = Prediction.empty(value.shape, _widened(value.dtype), quantiles)
    for where, values in function.blocks(progress_bar):
        out.fill(where, values.astype(_widened(values.dtype), copy=False))
    return out


@eqx.filter_jit
def _evaluate(
    module: Any, values: dict[int, jax.Array], points: Points, batched: bool
) -> Any:
    """The values of every draw, one draw after the other.

    Compiled once for every structure and shape, and kept from call to call: whatever
    the program depends on is in the arguments.
    """
    module = unwrap_dicts(module)
    leaves = jax.tree.leaves(module)

    def one(draw: tuple[jax.Array, dict[int, jax.Array]]) -> Any:
        number, values = draw
        of_draw = [values.get(position, leaf) for position, leaf in enumerate(leaves)]
        net = _mark_bound(rebuild(module, of_draw))
        given = points.of_draw(number)
        return given.call(net) if batched else given.map(net)

    if not values:
        return jax.tree.map(lambda leaf: leaf[None], one((jnp.array(0), {})))
    number = next(iter(values.values())).shape[0]
    return jax.lax.map(one, (jnp.arange(number), values))


def _check_call(module: Any, inputs: tuple, kwargs: dict[str, Any]) -> None:
    """Raise if the module does not take these arguments."""
    call = module.forward if isinstance(module, AbstractModule) else module
    try:
        inspect.signature(call).bind(*inputs, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"{type(module).__name__} cannot be called with {len(inputs)} inputs and "
            f"the keyword arguments {list(kwargs)}: {error}."
        ) from error


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether values differ by more than rounding, of the largest of them."""
    kind = np.complex128 if np.iscomplexobj(one) else np.float64
    one, other = one.astype(kind), other.astype(kind)
    size = np.abs(one[np.isfinite(one)]).max(initial=0.0)
    eps = float(jnp.finfo(jnp.float32).eps)
    return not np.allclose(one, other, rtol=0.0, atol=1e3 * eps * size, equal_nan=True)


def _note(module: Any, points: Points, batched: bool) -> str:
    name = type(module).__name__
    if batched:
        return f"predict called {name} with inputs of shape {points.shapes()}."
    return (
        f"predict maps {name}, which takes one point, over the leading axis of its "
        f"inputs, of shape {points.shapes()}: it called {name} with "
        f"{points.shapes(of_one=True)}. A single point is given as x[None]; rows of "
        "several batch axes are flattened to one."
    )


def _widened(dtype: Any) -> np.dtype:
    """NumPy has no quantiles of bfloat16, float16 or bool."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize < 4
    is_bool = np.dtype(dtype).kind == "b"
    return np.dtype(np.float32 if narrow or is_bool else dtype)
