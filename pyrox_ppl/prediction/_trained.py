"""A model with the trained values of its ``param`` and ``mutable`` sites in place."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from pyrox_ppl._layer_state import copy_state


def with_params(fn: Callable, params: Mapping[str, Any]) -> Callable:
    """Run a model with trained values.

    The value of a site may be a tree of arrays: a network, or the state of its layers.
    `params` has it whole or, as in a DataTree, array by array under ``<site>.<path>``;
    the model's own initial value then says how the arrays go together.
    """
    return handlers.substitute(fn, substitute_fn=partial(_value, params))


def check_trained(
    trace: Mapping[str, Any], params: Mapping[str, Any], *, of: str = "model"
) -> None:
    """Refuse a model if only a part of it has trained values.

    Args:
        trace: A run of it.
        params: The trained values.
        of: ``"model"`` or ``"guide"``.

    Raises:
        ValueError: If a ``mutable`` site has no value, or a ``param`` site where
            others have one.
    """
    kinds = ("mutable", "param") if params else ("mutable",)
    missing = [
        name
        for name, site in trace.items()
        if site["type"] in kinds
        and name not in params
        and not any(key.startswith(f"{name}.") for key in params)
    ]
    if missing:
        raise ValueError(
            f"the sites {missing} of the {of} have no trained values and would keep "
            f"their initial ones; there are values of {list(params)}. Pass those of "
            f"this {of}'s fit, params={{**fit.params, **fit.state.mutable_state}} "
            "(fit.params if there is no `mutable` site)."
        )


def path_of(site: str, path: tuple) -> str:
    """The name of an array in a site's tree of arrays."""
    steps = jax.tree_util.keystr(path, simple=True, separator=".")
    return f"{site}.{steps}" if steps else site


def arrays_by_path(values: dict[str, Any]) -> dict[str, Any]:
    """Arrays by name; those in a pytree (a network kept as a ``param``) by path."""
    flat = {}
    for name, value in values.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
            flat[path_of(name, path)] = leaf
    return flat


def _value(params: Mapping[str, Any], site: dict[str, Any]) -> Any:
    name = site["name"]
    if name in params:
        is_state = site["type"] == "mutable"
        return copy_state(params[name]) if is_state else params[name]
    is_tree = any(key.startswith(f"{name}.") for key in params)
    if site["type"] not in ("param", "mutable") or not is_tree:
        return None
    with handlers.block(), handlers.seed(rng_seed=0):
        initial = site["fn"](*site["args"], **site["kwargs"])
    leaves, treedef = jax.tree_util.tree_flatten_with_path(initial)
    if jax.tree_util.treedef_is_leaf(treedef):
        return None
    parts = [_part(path_of(name, path), leaf, params) for path, leaf in leaves]
    return jax.tree.unflatten(treedef, parts)


def _part(name: str, leaf: Any, params: Mapping[str, Any]) -> jax.Array:
    """One array of a tree, checked against the initial value."""
    if name not in params or np.shape(params[name]) != np.shape(leaf):
        came = np.shape(params[name]) if name in params else "none"
        raise ValueError(
            f"the model has an array {name!r} of shape {np.shape(leaf)}; among the "
            f"trained values it has shape {came}. They come from another model: pass "
            "params=fit.params of this one."
        )
    return jnp.asarray(params[name]).astype(jnp.asarray(leaf).dtype)
