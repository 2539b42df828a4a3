"""Where a kernel over one vector starts, and its functions of that vector."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from numpyro import handlers
from numpyro.infer.hmc import hmc
from numpyro.infer.util import ModelInfo, ParamInfo, initialize_model
from numpyro.util import is_prng_key

from pyrox_ppl.infer._vector import (
    Unravel,
    ravel,
    search_uniformly,
    uniform_radius,
)


class VectorStart(NamedTuple):
    """Where a kernel over one vector begins, and its functions of that vector.

    The functions take the model's arguments and return a function of the vector. The
    state is it or a ``ParamInfo``; the algorithm makes what NumPyro's ``hmc`` makes.
    """

    potential_fn: Callable
    postprocess_fn: Callable
    state: Any
    algorithm: Callable = hmc


def find_start(
    rng_key: Any,
    model: Callable,
    model_args: tuple,
    model_kwargs: dict[str, Any],
    init_params: Any,
    *,
    strategy: Callable,
    forward: bool = False,
) -> tuple[VectorStart, ModelInfo]:
    """Find the vector where a chain begins, or the vectors of several chains.

    Args:
        rng_key: A key, or the keys of vectorised chains.
        model: The model.
        model_args: Its arguments.
        model_kwargs: Its keyword arguments.
        init_params: Unconstrained initial values that the user gave, or None.
        strategy: The ``init_strategy`` of the kernel.
        forward: Whether forward-mode differentiation is used.

    Returns:
        The start, and what NumPyro found out about the model.
    """
    radius, compiled = uniform_radius(strategy), isinstance(rng_key, Tracer)
    searches = compiled and init_params is None and radius is not None
    # NumPyro searches for initial values site by site. In a compiled program our search
    # of the vector replaces it, and XLA drops it. Outside of one it stays, because it
    # raises errors that name the site.
    info = initialize_model(
        rng_key,
        model,
        dynamic_args=True,
        init_strategy=strategy,
        model_args=model_args,
        model_kwargs=model_kwargs,
        forward_mode_differentiation=forward,
        validate_grad=not (searches or (compiled and init_params is not None)),
    )
    start = info.param_info
    batched = not is_prng_key(rng_key)
    join = jax.vmap(ravel) if batched else ravel
    sites = jax.tree.map(lambda v: v[0], start.z) if batched else start.z
    unravel = Unravel(sites, fused=forward)
    potential_fn = _on_vector(info.potential_fn, unravel)
    if init_params is not None:
        state = _join_given(init_params, start.z, join)
    elif radius is None or not searches:
        state = start._replace(z=join(start.z), z_grad=join(start.z_grad))
    else:
        like = jax.eval_shape(ravel, sites)
        potential = potential_fn(*model_args, **model_kwargs)

        def search(rng_key: Any) -> ParamInfo:
            with handlers.seed(rng_seed=rng_key):  # draws the rows of a minibatch
                return search_uniformly(
                    rng_key, potential, like, radius, forward=forward
                )

        # In turn for each chain: under vmap all would wait for the longest search.
        state = lax.map(search, rng_key) if batched else search(rng_key)
    postprocess_fn = _on_vector(info.postprocess_fn, unravel)
    return VectorStart(potential_fn, postprocess_fn, state), info


def _join_given(init_params: Any, like: dict[str, Any], join: Callable) -> Any:
    """Initial values that the user gave, by site or as a vector, as a vector."""
    if isinstance(init_params, ParamInfo):
        return init_params
    vector = jax.eval_shape(join, like)
    if not isinstance(init_params, dict):
        if jnp.shape(init_params) != vector.shape:
            raise ValueError(
                f"init_params has the shape {jnp.shape(init_params)}, but the vector "
                f"of all unconstrained values has {vector.shape}: in the order of the "
                f"sites {sorted(like)}, and for several chains with a leading axis of "
                "MCMC's num_chains."
            )
        return jnp.asarray(init_params, vector.dtype)
    if init_params.keys() != like.keys():
        raise ValueError(
            "init_params must have an unconstrained value for each of the sites "
            f"{sorted(like)}, got {sorted(init_params)}."
        )
    for name, value in init_params.items():
        if jnp.shape(value) != jnp.shape(like[name]):
            raise ValueError(
                f"init_params has the shape {jnp.shape(value)} at the site {name!r}, "
                f"but the chains that start there need {jnp.shape(like[name])}: one "
                "unconstrained value per site, and for several chains a leading axis "
                "of MCMC's num_chains."
            )
    return join(init_params).astype(vector.dtype)


def _on_vector(make: Callable, unravel: Callable) -> Callable:
    """Turn a maker of functions of sites into a maker of functions of the vector."""

    def make_on_vector(*args: Any, **kwargs: Any) -> Callable:
        on_sites = make(*args, **kwargs)
        return lambda vector: on_sites(unravel(vector))

    return make_on_vector
