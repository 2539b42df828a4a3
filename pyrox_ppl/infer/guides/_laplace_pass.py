"""One pass through the data: the curvature at a mode, and whether it is a mode."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

from pyrox_ppl._full_data import full_data
from pyrox_ppl._observed_shapes import CheckObservedShapes
from pyrox_ppl.infer._batch_scale import check_batch_scales
from pyrox_ppl.infer.curvature import (
    Compiled,
    ModelAtMode,
    make_curvature,
    prior_precision,
)
from pyrox_ppl.infer.data import MinibatchLoader
from pyrox_ppl.infer.guides._laplace_fit import LaplaceFit, Values, with_all_digits

Batch = tuple[tuple, float]


@with_all_digits
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
    fisher_samples: int | None,
    max_decrement: float,
    compiled: Compiled,
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
        rng_key: The key of what is sampled.
        fisher_samples: From how many random columns each row's Fisher information is
            estimated; None for the exact one where it is known.
        max_decrement: The largest Newton decrement per weight.
        compiled: The functions compiled for this model.

    Raises:
        ValueError: If the parameters are no mode, or the precision is not positive.
    """
    if fisher_samples is not None and not (
        isinstance(fisher_samples, int) and fisher_samples > 0
    ):
        raise ValueError(
            f"fisher_samples must be a positive integer, got {fisher_samples!r}."
        )
    run, batches = batches_of(model, args)
    first = next(batches())[0]
    if (loader := _loader_of(args)) is not None:
        size, rows = loader.batch_size, loader.num_rows
        last = loader.rows(range(rows % size or size))
        check_batch_scales(model, (first, last), rows, kwargs)
    seen: dict[str, Any] = {}
    untrained = ModelAtMode(run, mode, params=params)
    with CheckObservedShapes():
        jax.eval_shape(lambda: seen.update(untrained.trace({}, first, kwargs)))
    if loader is None:
        _check_all_data(seen)
    trained = {
        name: params[name]
        for name, site in seen.items()
        if site["type"] in ("param", "mutable") and name in params
    }
    at = ModelAtMode(
        run,
        mode,
        params=trained,
        sites=sites,
        num_samples=fisher_samples,
        compiled=compiled,
    )
    _check_repeats(at, first, kwargs)
    value = jnp.zeros(())
    gradient = {name: jnp.zeros(jnp.shape(mode[name])) for name in at.sites}
    # Before the curvature, whose probes would take a NaN for rows that are coupled.
    for batch, weight in batches():
        one, slope = _value_and_gradient(at, batch, kwargs)
        value = value + weight * one
        gradient = {n: g + weight * slope[n] for n, g in gradient.items()}
    curvature = make_curvature(structure, at, first, kwargs, rank=rank, key=rng_key)
    for _ in range(curvature.num_passes):
        for step, (batch, weight) in enumerate(batches()):
            key = jax.random.fold_in(rng_key, step)
            curvature = curvature.accumulate(at, batch, kwargs, weight=weight, key=key)
        curvature = curvature.finish_pass()
    prior = prior_precision(structure, at, first, kwargs)
    fit = LaplaceFit(
        structure,
        curvature,
        prior,
        gradient,
        value + at.run(_log_prior, first, kwargs),
    )
    posterior = fit.posterior(damping)
    posterior.check()
    slope = at.run(_prior_gradient, first, kwargs)
    total = {n: g + gradient[n] for n, g in slope.items()}
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


def _check_all_data(trace: dict[str, Any]) -> None:
    """Refuse a model that sees a part of its data, where no loader says which.

    Raises:
        ValueError: If it does.
    """
    partial = {
        name: site["args"]
        for name, site in trace.items()
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0])
    }
    if partial:
        raise ValueError(
            f"the model sees a part of its data: its plates have (size, members) "
            f"{partial}. Pass all data, or the MinibatchLoader in place of them: "
            "guide.add_curvature(fit, loader)."
        )


def _value_and_gradient(
    at: ModelAtMode, args: tuple, kwargs: dict[str, Any]
) -> tuple[jax.Array, Values]:
    """The log likelihood of a batch at the mode, and its gradient.

    Raises:
        ValueError: If they are not finite.
    """
    value, gradient = at.run(_differentiate, args, kwargs)
    wrong = [name for name, g in gradient.items() if not jnp.isfinite(g).all()]
    if jnp.isfinite(value) and not wrong:
        return value, gradient
    for name, each in at.run(_log_likelihoods, args, kwargs).items():
        where = np.argwhere(~np.isfinite(each))
        if len(where):
            raise ValueError(
                f"the log density of the observed site {name!r} at the mode is not "
                f"finite for {len(where)} of {np.size(each)} values, the first at "
                f"{where[0].tolist()}: look for NaN and infinite numbers in the data "
                "and in the fit."
            )
    raise ValueError(
        "the log likelihood is finite at the mode, but its gradient by the sites "
        f"{wrong} is not: the model has no derivative there, as sqrt has none at zero, "
        "or a NaN is hidden by a mask, which does not stop it in a derivative: put a "
        "number in its place."
    )


def _differentiate(
    at: ModelAtMode, args: tuple, kwargs: dict[str, Any]
) -> tuple[jax.Array, Values]:
    return jax.value_and_grad(at.log_likelihood)(at.start, args, kwargs)


def _log_likelihoods(
    at: ModelAtMode, args: tuple, kwargs: dict[str, Any], key: jax.Array | None = None
) -> Values:
    return at.log_likelihoods(at.start, args, kwargs, key)


class _AskedForKey(Messenger):
    """Notes whether a model asks for a random key, as it does for dropout."""

    asked = False

    def process_message(self, msg: Any) -> None:
        """Note a message that asks for a key."""
        self.asked |= msg["type"] == "prng_key"


def _check_repeats(at: ModelAtMode, args: tuple, kwargs: dict[str, Any]) -> None:
    """Refuse a model whose likelihood is another one at every run.

    Raises:
        ValueError: If it is.
    """
    keys = _AskedForKey()
    with keys:
        jax.eval_shape(lambda: at.log_likelihoods(at.start, args, kwargs))
    if not keys.asked:
        return
    one, other = (
        at.run(_log_likelihoods, args, kwargs, jax.random.key(seed)) for seed in (0, 1)
    )
    wrong = [n for n in one if not np.array_equal(one[n], other[n], equal_nan=True)]
    if wrong:
        raise ValueError(
            f"the likelihood of {wrong} changes with the random key that the model "
            "draws, as dropout does, so it has no mode and no curvature: pass the "
            "arguments, or model=, that switch this off."
        )


def _prior_gradient(at: ModelAtMode, args: tuple, kwargs: dict[str, Any]) -> Values:
    return jax.grad(at.log_prior)(at.start, args, kwargs)


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
