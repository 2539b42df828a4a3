"""NUTS with a mass matrix of low rank, adapted by draws and gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from numpyro.infer.hmc import hmc
from numpyro.infer.hmc_util import build_adaptation_schedule
from numpyro.infer.util import ParamInfo

from pyrox_ppl.infer.kernels._blackjax import import_blackjax


def low_rank_hmc(
    potential_fn_gen: Callable, kinetic_fn: Callable, algo: str
) -> tuple[Callable, Callable]:
    r"""NumPyro's ``hmc`` with BlackJAX's low-rank inverse mass matrix.

    .. math:: M^{-1} = L L^\top, \qquad
        L = \mathrm{diag}(\sigma)\,(I + V (\sqrt{\Lambda} - I) V^\top)

    NumPyro's program knows diagonal and full matrices. With :math:`u = L v` the sampler
    of :math:`v` with the unit matrix is that of :math:`u` with :math:`M^{-1}`, so it
    runs there, in the potential :math:`U(L v)`, and the state holds :math:`u`. The
    matrix and what it is adapted by stand in the place of NumPyro's own estimate,
    ``adapt_state.mm_state``, which NumPyro passes on where it adapts no matrix.
    """

    def whitened_gen(matrix: Any, model_args: tuple, model_kwargs: dict) -> Callable:
        potential = potential_fn_gen(*model_args, **model_kwargs)
        scale = _scale(matrix)
        return lambda v: potential(scale(v, inv=True, trans=False))

    first, step = hmc(potential_fn_gen=whitened_gen, kinetic_fn=kinetic_fn, algo=algo)
    windows = jnp.zeros((1, 2), int)
    core: Any = None

    def init(
        init_params: Any,
        *,
        num_warmup: int,
        model_args: tuple,
        model_kwargs: dict[str, Any],
        **settings: Any,
    ) -> Any:
        nonlocal windows, core
        schedule = build_adaptation_schedule(num_warmup)
        windows = jnp.asarray(schedule, int)
        longest = max([end - start + 1 for start, end in schedule[1:-1]], default=1)
        core = _core(longest)
        z = init_params.z if isinstance(init_params, ParamInfo) else init_params
        estimate = jax.tree.map(jnp.asarray, core.init(z.size))
        settings |= {"adapt_mass_matrix": False, "inverse_mass_matrix": None}
        state = first(
            init_params,
            num_warmup=num_warmup,
            model_args=(estimate.inverse_mass_matrix, model_args, model_kwargs),
            model_kwargs={},
            **settings,
        )
        return _with_estimate(state, estimate)

    def sample(
        state: Any, model_args: tuple = (), model_kwargs: dict[str, Any] | None = None
    ) -> Any:
        estimate = state.adapt_state.mm_state
        matrix = estimate.inverse_mass_matrix
        scale = _scale(matrix)
        v = scale(state.z, inv=False, trans=True)
        whitened = state._replace(z=v, z_grad=scale(state.z_grad, inv=True, trans=True))
        new = step(whitened, (matrix, model_args, model_kwargs or {}), {})
        moved = jnp.any(new.z != v)
        # A draw that stays is the same to the last bit.
        z = jnp.where(moved, scale(new.z, inv=True, trans=False), state.z)
        back = scale(new.z_grad, inv=False, trans=False)
        z_grad = jnp.where(moved, back, state.z_grad)
        window = state.adapt_state.window_idx
        measures = (window > 0) & (window < len(windows) - 1)
        ends = state.i == windows[jnp.minimum(window, len(windows) - 1), 1]
        estimate = _adapt(core, measures, ends, estimate, z, -z_grad)
        return _with_estimate(new._replace(z=z, z_grad=z_grad), estimate)

    return init, sample


def _core(longest: int) -> Any:
    """BlackJAX's estimator, with room for a window."""
    recipes = import_blackjax("adaptation.metric_recipes", "FlatNUTS")
    return recipes.lookup_recipe("fisher_low_rank").build_core(buffer_size=longest)


def _scale(matrix: Any) -> Callable:
    metrics = import_blackjax("mcmc.metrics", "FlatNUTS")
    scale = metrics.gaussian_euclidean_low_rank(*matrix).scale
    return lambda vector, **how: scale(None, vector, **how)


def _with_estimate(state: Any, estimate: Any) -> Any:
    adapted = state.adapt_state._replace(mm_state=estimate)
    return state._replace(adapt_state=adapted)


def _adapt(
    core: Any, measures: Any, ends: Any, estimate: Any, z: jax.Array, grad: jax.Array
) -> Any:
    """The estimate after one more draw with its gradient, in a window that measures."""

    def same(part: Any) -> Any:
        return part

    def adapt(map_chains: Callable, measures: Any, ends: Any, *given: Any) -> Any:
        update, final = (map_chains(_like(f)) for f in (core.update, core.final))

        def add(*given: Any) -> Any:
            return lax.cond(ends, final, same, update(*given))

        return lax.cond(measures, add, lambda estimate, *_: estimate, *given)

    @custom_vmap
    def adapt_one(measures: Any, ends: Any, *given: Any) -> Any:
        return adapt(same, measures, ends, *given)

    @adapt_one.def_vmap
    def adapt_many(
        size: int, batched: Any, measures: Any, ends: Any, *given: Any
    ) -> tuple:
        # Vectorised chains are in one window. With a flag for each, XLA would compute
        # the singular values for the end of a window in each iteration.
        flags = jnp.any(measures), jnp.any(ends)
        given = tuple(
            jax.tree.map(lambda x, b: x if b else jnp.repeat(x[None], size, 0), *pair)
            for pair in zip(given, batched[2:], strict=True)
        )
        new = adapt(jax.vmap, *flags, *given)
        return new, jax.tree.map(lambda _: True, new)

    return adapt_one(measures, ends, estimate, z, grad)


def _like(function: Callable) -> Callable:
    """A function whose result has the dtypes of its first argument."""

    def with_dtypes(first: Any, *rest: Any) -> Any:
        new = function(first, *rest)
        return jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new, first)

    return with_dtypes
