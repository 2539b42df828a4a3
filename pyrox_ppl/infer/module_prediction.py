"""Predictions of a module: blocks of points, and within a block a loop over draws."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from pyrox_ppl._bind import AbstractModule, _mark_bound
from pyrox_ppl.infer.draws import Draws
from pyrox_ppl.infer.loop import CHUNK_BYTES, bytes_of, even_size
from pyrox_ppl.infer.modules import parameter_draws
from pyrox_ppl.infer.prediction import Prediction

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
        batch_size: int | None,
    ) -> None:
        self.number = draws.number
        self._module, self._values = parameter_draws(module, draws, name)
        self._check_members()
        self._inputs, self._kwargs = inputs, kwargs
        batched = isinstance(module, AbstractModule)
        self.points = _points(inputs, batched)
        self._sliced = tuple(_is_sliced(x, inputs, self.points) for x in inputs)
        self._axes = (
            None if batched else tuple(0 if one else None for one in self._sliced)
        )
        if not batched and self.points is None:
            raise ValueError(
                f"{type(module).__name__} takes one point, so predict maps it over the "
                "leading axis of its inputs, and none of them has one."
            )
        self.block = 1 if self.points is None else self._block(batch_size)

    def _check_members(self) -> None:
        leaves = jax.tree.leaves(self._module)
        for position, value in self._values.items():
            if value.ndim > 1 + leaves[position].ndim:
                raise ValueError(
                    f"the draws of {type(self._module).__name__} have an axis of the "
                    "plate it was bound on: predict with the model, or with "
                    "`posterior_modules` and `eqx.filter_vmap`."
                )

    def _block(self, batch_size: int | None) -> int:
        points = self.points or 1
        if batch_size is not None:
            return even_size(points, batch_size)
        one = jax.eval_shape(lambda: self._at(0, 1))
        return even_size(points, min(MOST_POINTS, CHUNK_BYTES // bytes_of(one)))

    def _at(self, start: int, size: int) -> jax.Array:
        inputs = tuple(
            x[start : start + size] if sliced else x
            for x, sliced in zip(self._inputs, self._sliced, strict=True)
        )
        return _evaluate(self._module, self._values, inputs, self._kwargs, self._axes)

    def blocks(self, progress_bar: bool = False) -> Any:
        """Yield slices of the points, and the values there of all draws.

        The next block is under way while the last one is looked at.
        """
        points = self.points
        starts = [0] if points is None else range(0, points, self.block)
        waiting = None
        for start in tqdm(starts, desc="predict", disable=not progress_bar, delay=2.0):
            # The last block begins earlier, so that all have one shape.
            begin = 0 if points is None else min(start, points - self.block)
            running = self._at(begin, self.block)
            if waiting is not None:
                yield waiting[0], np.asarray(waiting[1])
            where = ... if points is None else slice(begin, begin + self.block)
            waiting = where, running
        if waiting is not None:
            yield waiting[0], np.asarray(waiting[1])

    def shape(self) -> jax.ShapeDtypeStruct:
        """Of the values of one draw at all points."""
        one = jax.eval_shape(lambda: self._at(0, self.block))
        shape = one.shape[1:]
        if self.points is not None:
            shape = (self.points, *shape[1:])
        return jax.ShapeDtypeStruct(shape, one.dtype)


def predict_function(
    module: eqx.Module,
    draws: Draws,
    inputs: tuple,
    kwargs: dict[str, Any],
    *,
    name: str | None,
    quantiles: tuple[float, ...],
    batch_size: int | None,
    progress_bar: bool,
) -> Prediction:
    """Summarise a module's values over all draws (see :func:`~pyrox_ppl.predict`)."""
    function = Function(module, draws, inputs, kwargs, name=name, batch_size=batch_size)
    value = function.shape()
    out = Prediction.empty(value.shape, _widened(value.dtype), quantiles)
    for where, values in function.blocks(progress_bar):
        out.fill(where, values.astype(_widened(values.dtype), copy=False))
    return out


@eqx.filter_jit
def _evaluate(
    module: Any,
    values: dict[int, jax.Array],
    inputs: tuple,
    kwargs: dict[str, Any],
    axes: tuple[int | None, ...] | None,
) -> jax.Array:
    """The values of every draw, one draw after the other.

    Compiled once for every structure and shape, and kept from call to call: whatever
    the program depends on is in the arguments.
    """
    leaves, treedef = jax.tree.flatten(module)

    def one(draw: dict[int, jax.Array]) -> jax.Array:
        of_draw = [draw.get(position, leaf) for position, leaf in enumerate(leaves)]
        net = _mark_bound(jax.tree.unflatten(treedef, of_draw))
        if axes is None:
            return net(*inputs, **kwargs)
        return jax.vmap(lambda *point: net(*point, **kwargs), in_axes=axes)(*inputs)

    if not values:
        return jnp.expand_dims(one({}), 0)
    return jax.lax.map(one, values)


def _points(inputs: tuple, batched: bool) -> int | None:
    """The number of points: the longest leading axis of the inputs with most axes."""
    arrays = [x for x in inputs if hasattr(x, "shape")]
    most = max((x.ndim for x in arrays), default=0)
    if most < (2 if batched else 1):
        return None
    sizes = {x.shape[0] for x in arrays if x.ndim == most} - {1}
    if len(sizes) > 1:
        raise ValueError(
            "the inputs have different numbers of points along their leading axis: "
            f"{[x.shape for x in arrays]}."
        )
    return sizes.pop() if sizes else 1


def _is_sliced(x: Any, inputs: tuple, points: int | None) -> bool:
    most = max((y.ndim for y in inputs if hasattr(y, "shape")), default=0)
    return (
        points is not None
        and hasattr(x, "shape")
        and x.ndim == most
        and x.shape[0] == points
    )


def _widened(dtype: Any) -> np.dtype:
    """NumPy has no quantiles of bfloat16 or float16."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize < 4
    return np.dtype(np.float32) if narrow else np.dtype(dtype)
