"""Arrays and distributions in another precision than the model has them in."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution
from numpyro.distributions.transforms import Transform
from numpyro.distributions.util import lazy_property


def in_double(tree: Any) -> Any:
    """A tree with its floating arrays in float64, inside distributions as well."""
    return _convert(tree, lambda dtype: np.dtype(np.float64))


def in_single(tree: Any) -> Any:
    """A tree with its arrays of half precision in float32, also in distributions.

    A log density or a probability in bfloat16 has three digits, and the probabilities
    of all classes do not sum to 1.
    """
    return _convert(
        tree, lambda dtype: np.dtype(np.float32) if dtype.itemsize < 4 else dtype
    )


def _convert(tree: Any, precision: Callable[[np.dtype], np.dtype]) -> Any:
    """A tree whose floating arrays have the precision that their dtype is given.

    A distribution is copied attribute by attribute, since a user's own need not be a
    pytree. What it has computed from its parameters is computed anew.
    """

    def convert(leaf: Any) -> Any:
        if _is_whole(leaf):
            new, cls = copy.copy(leaf), type(leaf)
            for name, value in vars(leaf).items():
                if isinstance(getattr(cls, name, None), lazy_property):
                    del vars(new)[name]
                else:
                    vars(new)[name] = _convert(value, precision)
            return new
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            return leaf
        wanted = precision(np.dtype(dtype))
        return leaf if wanted == dtype else jnp.asarray(leaf, wanted)

    return jax.tree.map(convert, tree, is_leaf=_is_whole)


def _is_whole(node: Any) -> bool:
    return isinstance(node, Distribution | Transform)
