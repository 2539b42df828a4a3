"""Compiled functions that are freed with the model that they were compiled for."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax


class Compiled:
    """Functions compiled for one model, at any of its modes.

    JAX keeps static arguments, and so a model and its data, after the jitted function
    is gone; ``eqx.filter_jit`` keeps that as well. A function that closes over them is
    freed with all of them.
    """

    def __init__(self) -> None:
        self._jitted: dict[tuple, Callable] = {}

    def __call__(self, function: Callable, *inputs: Any) -> Any:
        """Call a function in its program: arrays are traced, all else is static."""
        leaves, tree = jax.tree.flatten(inputs)
        arrays = [leaf for leaf in leaves if eqx.is_array(leaf)]
        rest = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
        key = function, tree, rest
        if key not in self._jitted:
            self._jitted[key] = _jit(*key)
        return self._jitted[key](arrays)


def _jit(function: Callable, tree: Any, rest: tuple) -> Callable:
    def run(arrays: list) -> Any:
        given = iter(arrays)
        leaves = [next(given) if leaf is None else leaf for leaf in rest]
        return function(*jax.tree.unflatten(tree, leaves))

    return jax.jit(run)
