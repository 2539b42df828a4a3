"""The inputs of a module, and which of their arrays have a row for every point."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.util import is_prng_key

from pyrox_ppl._dict_order import unwrap_dicts, wrap_dicts


class Points(eqx.Module):
    """The arguments of a call, and which of their arrays have a row for every point.

    Attributes:
        args: The positional and the keyword arguments.
        numbers: The numbers of these points, by which they get different random keys.
        sliced: Which of the leaves have a row for every point.
        single: Which of the leaves have one row, for all points.
        number: The number of points, or None where the arguments are a single one.
    """

    args: tuple[tuple, dict[str, Any]]
    numbers: Any
    sliced: tuple[bool, ...] = eqx.field(static=True)
    single: tuple[bool, ...] = eqx.field(static=True)
    number: int | None = eqx.field(static=True)

    @classmethod
    def find(cls, inputs: tuple, kwargs: dict[str, Any], batched: bool) -> Self:
        """Find the points: the longest leading axis of the arrays with most axes.

        Arrays passed by keyword are cut by points as well, but only positional ones
        decide how many axes have points, unless there are none.

        Args:
            inputs: The positional arguments.
            kwargs: The keyword arguments.
            batched: Whether the module takes batches, so that a vector is one point.

        Raises:
            ValueError: If leading axes differ, or if an array of integers may be raw
                random keys.
        """
        # A module may loop over a dictionary; JAX would sort its keys.
        inputs = wrap_dicts(inputs, _is_module)
        kwargs = {name: wrap_dicts(part, _is_module) for name, part in kwargs.items()}
        # A NumPy array would be a constant of the compiled function.
        inputs, kwargs = jax.tree.map(
            lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x,
            (inputs, kwargs),
            is_leaf=_is_module,
        )
        decisive = [x for x in _leaves(inputs) if _is_data(x)]
        if not decisive:
            decisive = [x for x in _leaves(kwargs) if _is_data(x)]
        most = max((x.ndim for x in decisive), default=0)
        leaves = _leaves((inputs, kwargs))
        for x in leaves:
            _refuse_raw_keys(x)
        if most < (2 if batched else 1):
            none = (False,) * len(leaves)
            return cls((inputs, kwargs), None, none, none, None)
        rows = [x for x in leaves if _is_data(x) and x.ndim == most]
        sizes = {x.shape[0] for x in rows} - {1}
        if len(sizes) > 1:
            raise ValueError(
                "the inputs have different numbers of points along their leading axis: "
                f"{[x.shape for x in rows]}. An input without a row for every point "
                "must have fewer axes, or be a field of the module."
            )
        number = sizes.pop() if sizes else 1
        sliced = [
            eqx.is_array(x)
            and not is_prng_key(x)
            and (x.ndim == most or _is_random(x))
            and x.shape[0] == number
            for x in leaves
        ]
        single = [
            _is_data(x) and x.ndim == most and not one
            for x, one in zip(leaves, sliced, strict=True)
        ]
        numbers = jnp.arange(number)
        return cls((inputs, kwargs), numbers, tuple(sliced), tuple(single), number)

    @property
    def has_keys(self) -> bool:
        """Whether random keys are among the arguments, so that draws differ by them."""
        return any(_is_random(x) for x in _leaves(self.args))

    def block(self, start: int, size: int) -> Self:
        """A block of the points."""
        if self.number is None:
            return self
        where = slice(start, start + size)
        return self._with(lambda x: x[where], self.numbers[where])

    def turned_block(self, size: int, first: int) -> Self:
        """The first points, the very first of them moved to the end and changed."""

        def turn(x: Any) -> Any:
            return jnp.concatenate([x[first:size], _change(x[:first], x)])

        return self._with(turn, jnp.roll(self.numbers[:size], -first))

    def mapped(self) -> Self:
        """The same points, with arrays of fewer axes cut too, where possible."""
        sliced = tuple(
            one or (_is_data(x) and x.ndim > 0 and x.shape[0] == self.number)
            for x, one in zip(_leaves(self.args), self.sliced, strict=True)
        )
        return dataclasses.replace(self, sliced=sliced)

    def with_keys_of_draw(self, number: jax.Array) -> Self:
        """The same points with the random keys of one draw."""
        args = jax.tree.map(lambda x: _key_of(x, number), self.args, is_leaf=_is_module)
        return dataclasses.replace(self, args=args)

    def call(self, function: Callable[..., Any]) -> Any:
        """The values of a function at all points at once."""
        inputs, kwargs = unwrap_dicts(self.args, _is_module)
        return function(*inputs, **kwargs)

    def map(self, module: Any) -> Any:
        """The module's values, mapped over the points, each with its row or the one."""
        leaves, treedef = jax.tree.flatten(self.args, is_leaf=_is_module)
        leaves = [
            x[0] if one else x for x, one in zip(leaves, self.single, strict=True)
        ]
        rows = [x for x, one in zip(leaves, self.sliced, strict=True) if one]

        def at_one(number: jax.Array, rows: list) -> Any:
            row = iter(rows)
            point = [
                next(row) if one else _key_of(x, number)
                for x, one in zip(leaves, self.sliced, strict=True)
            ]
            args = jax.tree.unflatten(treedef, point)
            inputs, kwargs = unwrap_dicts(args, _is_module)
            return module(*inputs, **kwargs)

        return jax.vmap(at_one)(self.numbers, rows)

    def shapes(self, of_one: bool = False) -> list[tuple[int, ...]]:
        """The shapes of the arrays, of all points or of one."""
        return [
            x.shape[1:] if of_one and (row or one) else x.shape
            for x, row, one in zip(
                _leaves(self.args), self.sliced, self.single, strict=True
            )
            if eqx.is_array(x)
        ]

    def _with(self, change: Any, numbers: Any) -> Self:
        leaves, treedef = jax.tree.flatten(self.args, is_leaf=_is_module)
        changed = [
            change(x) if one else x for x, one in zip(leaves, self.sliced, strict=True)
        ]
        args = jax.tree.unflatten(treedef, changed)
        return dataclasses.replace(
            self, args=args, numbers=numbers, number=len(numbers)
        )


def _change(rows: jax.Array, all_rows: jax.Array) -> jax.Array:
    """Other values of the same kind; random keys stay as they are."""
    if jnp.issubdtype(rows.dtype, jnp.inexact):
        return (-2 * rows - 1).astype(rows.dtype)
    if rows.dtype == jnp.bool_:
        return ~rows
    if jnp.issubdtype(rows.dtype, jnp.integer):
        # Integers may be indices, so they stay between the least and the greatest.
        return all_rows.min() + all_rows.max() - rows
    return rows


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=_is_module)


def _is_module(node: Any) -> bool:
    """A module, or the state of its layers, has no rows of points among the inputs."""
    return isinstance(node, eqx.Module | eqx.nn.State)


def _is_data(x: Any) -> bool:
    return eqx.is_array(x) and not _is_random(x)


def _is_random(x: Any) -> bool:
    """Whether this is a random key, typed or raw, or an array of typed ones."""
    typed = eqx.is_array(x) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return typed or (eqx.is_array(x) and is_prng_key(x))


def _key_of(x: Any, number: jax.Array) -> Any:
    """A random key for this draw or point; anything else stays as it is."""
    if not _is_random(x):
        return x
    fold_in = jax.random.fold_in
    for _ in range(0 if is_prng_key(x) else x.ndim):
        fold_in = jax.vmap(fold_in, (0, None))
    return fold_in(x, number)


def _refuse_raw_keys(x: Any) -> None:
    """Raise for integers that may be raw random keys."""
    is_array = eqx.is_array(x) and x.dtype == jnp.uint32
    if is_array and x.ndim > 1 and x.shape[-1] == 2:
        raise ValueError(
            f"an input of shape {x.shape} and dtype uint32 may hold random keys, which "
            "must differ from draw to draw, or integers. Pass keys as "
            "jax.random.wrap_key_data(keys), integers as int32."
        )
