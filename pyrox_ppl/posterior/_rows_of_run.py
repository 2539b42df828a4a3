"""Whether a tree's data are those that a run has seen, where this can be known."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpyro.infer import MCMC

from pyrox_ppl._numpyro import arguments_of_run
from pyrox_ppl.posterior._source import Source
from pyrox_ppl.prediction._model_call import ModelCall

_GROUPS = ("observed_data", "constant_data")


def rows_of_run(
    source: Any, given: Source, call: ModelCall, datasets: dict[str, xr.Dataset]
) -> dict[str, int]:
    """The attribute ``rows_of_run``: 1 if the data are the run's, 0 if not.

    NumPyro's ``MCMC`` keeps the arguments of its run; a tree keeps the data that it was
    made of. Nothing is said where this is not known: of a result of SVI, of draws in a
    dictionary, and of arguments that cannot be compared.
    """
    if given.is_warmup:
        return {}
    same = None
    if isinstance(source, MCMC):
        same = _are_arguments_of_run(source, call)
    elif isinstance(source, xr.DataTree) and source.attrs.get("rows_of_run") == 1:
        same = _are_data_of_tree(source, datasets)
    return {} if same is None else {"rows_of_run": int(same)}


def _are_arguments_of_run(mcmc: MCMC, call: ModelCall) -> bool | None:
    ran = _leaves(mcmc.sampler.model, *arguments_of_run(mcmc))
    now = _leaves(call.model, call.args, call.kwargs)
    # A list in place of an array, or other names: the values may still be the same.
    if ran is None or now is None or set(ran) != set(now):
        return None
    same = [_are_same(ran[name], now[name]) for name in ran]
    if False in same:
        return False
    # Another model may hold other rows, which no argument shows.
    is_own = call.model is mcmc.sampler.model
    return True if is_own and None not in same else None


def _are_data_of_tree(
    tree: xr.DataTree, datasets: dict[str, xr.Dataset]
) -> bool | None:
    same = True
    for group in _GROUPS:
        before = tree[group].to_dataset() if group in tree.children else xr.Dataset()
        now = datasets.get(group, xr.Dataset())
        if set(before.data_vars) != set(now.data_vars):
            return None
        for name in now.data_vars:
            same &= _are_equal(before[name].values, now[name].values)
    return same


def _leaves(
    model: Callable, args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The leaves of a model's arguments, by name and path."""
    try:
        bound = inspect.signature(model).bind(*args, **kwargs)
    except TypeError:  # the arguments of a model that was exchanged for another
        return None
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(bound.arguments))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _are_same(one: Any, other: Any) -> bool | None:
    """Whether two leaves are the same; None where only their arrays could differ."""
    if one is other:
        return True
    if all(isinstance(leaf, jax.Array | np.ndarray) for leaf in (one, other)):
        if any(jnp.issubdtype(a.dtype, jax.dtypes.prng_key) for a in (one, other)):
            return True  # which key a run had says nothing of its rows
        return _are_equal(one, other)
    # A number or a text may choose rows in the model, or set a flag: nobody knows.
    plain = bool | int | float | str
    return True if isinstance(one, plain) and one == other else None


def _are_equal(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    numeric = all(array.dtype.kind in "biufcV" for array in (one, other))
    if not numeric:
        return np.array_equal(one, other)
    # In JAX's own precision: one may be the double that the other was made from.
    one, other = (np.asarray(jnp.asarray(array)) for array in (one, other))
    nan = one.dtype.kind in "fc" and other.dtype.kind in "fc"
    return np.array_equal(one, other, equal_nan=nan)
