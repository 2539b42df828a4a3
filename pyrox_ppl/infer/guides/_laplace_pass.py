"""One pass through the data: the curvature at a mode, and whether it is a mode."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from numpyro import handlers
from numpyro.distributions import biject_to

from pyrox_ppl._full_data import full_data
from pyrox_ppl.infer.curvature import ModelAtMode, make_curvature, prior_precision
from pyrox_ppl.infer.data import MinibatchLoader
from pyrox_ppl.infer.guides._laplace_fit import LaplaceFit, Values

Batch = tuple[tuple, float]


def go_through(
    model: Callable,
    mode: Values,
    params: Mapping[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
    *,
    structure: str,
    sites: tuple[str, ...],
    rank: int,
    damping: float,
    rng_key: jax.Array,
    max_decrement: float,
) -> LaplaceFit:
    """The curvature of a model's likelihood and prior at a mode.

    Args:
        model: The model.
        mode: The unconstrained values of its latent sites.
        params: The values of its ``param`` and ``mutable`` sites, among others.
        args: Its arguments, or one loader.
        kwargs: Its keyword arguments.
        structure: The structure of the curvature.
        sites: The sites that vary.
        rank: The rank of ``"low_rank"``.
        damping: What is added to the precision, for the checks.
        rng_key: The key of sampled labels.
        max_decrement: The largest Newton decrement per weight.

    Raises:
        ValueError: If the parameters are no mode, or the precision is not positive.
    """
    run, batches = batches_of(model, args)
    first = next(batches())[0]
    seen: dict[str, Any] = {}
    jax.eval_shape(lambda: seen.update(run_at(run, mode, params, first, kwargs)))
    _check_scale(seen, args, len(first[0]) if _loader_of(args) else None)
    trained = {
        name: params[name]
        for name, site in seen.items()
        if site["type"] in ("param", "mutable") and name in params
    }
    at = ModelAtMode(run, mode, params=trained, sites=sites)
    curvature = make_curvature(structure, at, first, kwargs, rank=rank, key=rng_key)
    value = jnp.zeros(())
    gradient = {name: jnp.zeros(jnp.shape(mode[name])) for name in at.sites}
    for number in range(curvature.num_passes):
        for step, (batch, weight) in enumerate(batches()):
            key = jax.random.fold_in(rng_key, step)
            curvature = curvature.accumulate(at, batch, kwargs, weight=weight, key=key)
            if number == 0:
                one, slope = _value_and_gradient(at, batch, kwargs)
                value = value + weight * one
                gradient = {n: g + weight * slope[n] for n, g in gradient.items()}
        curvature = curvature.finish_pass()
    prior = prior_precision(structure, at, first, kwargs)
    fit = LaplaceFit(
        structure,
        curvature,
        prior,
        gradient,
        value + _log_prior(at, first, kwargs),
    )
    posterior = fit.posterior(damping)
    posterior.check()
    total = {n: g + gradient[n] for n, g in at.prior_gradient(first, kwargs).items()}
    _check_mode(total, posterior.solve(total), fit.size, max_decrement)
    return fit


def batches_of(
    model: Callable, args: tuple
) -> tuple[Callable, Callable[[], Iterator[Batch]]]:
    """The model to run, and its batches with their weights.

    All rows of a loader come once. The model multiplies each batch by rows / size, and
    the weight is size / rows.
    """
    loader = _loader_of(args)
    if loader is None:
        return _OnAllData(model), lambda: iter([(args, 1.0)])
    size, rows = loader.batch_size, loader.num_rows

    def each() -> Iterator[Batch]:
        for start in range(0, rows, size):
            batch = loader.rows(range(start, min(start + size, rows)))
            yield batch, len(batch[0]) / rows

    return model, each


def _loader_of(args: tuple) -> MinibatchLoader | None:
    if len(args) == 1 and isinstance(args[0], MinibatchLoader):
        return args[0]
    return None


class _OnAllData(eqx.Module):
    """A model whose plates draw no minibatches."""

    model: Callable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return full_data(functools.partial(self.model, *args, **kwargs))()


def run_at(
    model: Callable,
    mode: Values,
    params: Mapping[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """The sites of one run of a model at the mode."""

    def put(site: dict[str, Any]) -> Any:
        name = site["name"]
        if site["type"] == "sample" and not site["is_observed"] and name in mode:
            return biject_to(site["fn"].support)(mode[name])
        if site["type"] in ("param", "mutable") and name in params:
            # A layer that updates an `eqx.nn.State` makes the old one unusable.
            return jax.tree.map(lambda leaf: leaf, params[name])
        return None

    run = handlers.substitute(handlers.seed(model, 0), substitute_fn=put)
    return handlers.trace(run).get_trace(*args, **kwargs)


def _check_scale(trace: dict[str, Any], args: tuple, batch: int | None) -> None:
    """Refuse a model that sees a part of the data without the scale that undoes it.

    Raises:
        ValueError: If it does.
    """
    partial = {
        name: site["args"]
        for name, site in trace.items()
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0])
    }
    if batch is None:
        if partial:
            raise ValueError(
                f"the model sees a part of its data: its plates have (size, members) "
                f"{partial}. Pass all data, or the MinibatchLoader in place of them: "
                "guide.add_curvature(fit, loader)."
            )
        return
    rows = args[0].num_rows
    for name, site in trace.items():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        scale = 1.0 if site["scale"] is None else site["scale"]
        if isinstance(scale, Tracer):
            continue
        if abs(float(scale) * batch / rows - 1.0) > 1e-6:
            raise ValueError(
                f"the site {name!r} has the scale {float(scale):g} with a batch of "
                f"{batch} of {rows} rows: put it on a plate of all rows, "
                'numpyro.plate("row", loader.num_rows, subsample_size=len(x)).'
            )


@eqx.filter_jit
def _value_and_gradient(
    at: ModelAtMode, args: tuple, kwargs: dict[str, Any]
) -> tuple[jax.Array, Values]:
    return jax.value_and_grad(at.log_likelihood)(at.start, args, kwargs)


@eqx.filter_jit
def _log_prior(at: ModelAtMode, args: tuple, kwargs: dict[str, Any]) -> jax.Array:
    return at.log_prior(at.start, args, kwargs)


def _check_mode(gradient: Values, step: Values, size: int, largest: float) -> None:
    """Refuse parameters that are far from the mode, in posterior standard deviations.

    Raises:
        ValueError: If they are.
    """
    parts = {name: float(jnp.sum(gradient[name] * step[name])) for name in gradient}
    decrement = sum(parts.values()) / size
    if not decrement <= largest:  # also where it is not finite
        worst = max(parts, key=lambda name: parts[name])
        raise ValueError(
            "the fit is no mode for these data: its squared distance to the mode is "
            f"{decrement:.3g} per weight, in standard deviations of the posterior "
            f"(most of it in {worst!r}), and at most {largest:g} is accepted. Train "
            "for longer, with a learning rate that decays; pass the data and arguments "
            f"of the fit; or accept it by max_decrement={2 * decrement:.1g}."
        )
