"""Draws from a trained guide, and how well the guide fits: importance weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import Delta, Independent
from numpyro.infer.autoguide import AutoGuide, AutoGuideList
from numpyro.infer.util import log_density

from pyrox_ppl.infer.dependence import dependence, marked
from pyrox_ppl.infer.full_data import full_data, is_factor
from pyrox_ppl.infer.loop import keys_of_draws, map_draws
from pyrox_ppl.infer.trained import with_params


@dataclasses.dataclass(frozen=True)
class GuideDraws:
    """The draws of a guide.

    Attributes:
        guide: The guide.
        values: The draws of the model's sites.
        random: The draws of the sites that the guide draws at random, from which all
            others follow.
        is_point: Whether nothing is random: a point estimate.
        has_density: Whether a call of the guide says how dense its draws are.
    """

    guide: Callable
    values: dict[str, np.ndarray]
    random: dict[str, np.ndarray]
    is_point: bool
    has_density: bool = True


def draw_guide(
    guide: Callable,
    model: Callable,
    params: dict[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
    rng_key: PRNGKeyArray,
    num_samples: int,
) -> GuideDraws:
    """Draw from a guide with its trained parameters, plates whole.

    The draws are those of NumPyro's ``Predictive(model, guide=guide, params=params,
    num_samples=num_samples)``. Where a call of an autoguide is a point and its
    posterior is not (``AutoLaplaceApproximation``), they are those of its
    ``sample_posterior(rng_key, params, sample_shape=(num_samples,))``.
    """
    auxiliary: set[str] = set()
    random: set[str] = set()
    run = full_data(with_params(guide, params), model=with_params(model, params))

    def one(key: jax.Array) -> dict[str, jax.Array]:
        trace = handlers.trace(handlers.seed(run, key)).get_trace(*args, **kwargs)
        sample = {n: site for n, site in trace.items() if site["type"] == "sample"}
        drawn = {n: site for n, site in sample.items() if not site["is_observed"]}
        auxiliary.update(n for n, site in sample.items() if is_factor(site))
        random.update(n for n, site in drawn.items() if not _is_delta(site["fn"]))
        return {name: jnp.asarray(site["value"]) for name, site in drawn.items()}

    points = set(jax.eval_shape(one, rng_key)) - random - auxiliary
    elsewhere = [
        part
        for part in _parts(guide)
        if _is_point_that_is_random(part, params, args, kwargs)
    ]
    number = num_samples if random or elsewhere else 1
    values = map_draws(one, keys_of_draws(rng_key, number), number)
    for part in elsewhere:
        posterior = part.sample_posterior(
            rng_key, params, *args, sample_shape=(number,), **kwargs
        )
        found = {n: np.asarray(v) for n, v in posterior.items() if n in points}
        values.update(found)
    return GuideDraws(
        guide,
        {name: value for name, value in values.items() if name not in auxiliary},
        {name: value for name, value in values.items() if name in random},
        not (random or elsewhere),
        not elsewhere and not auxiliary - values.keys(),
    )


def _parts(guide: Any) -> list[AutoGuide]:
    """The autoguides that a guide consists of."""
    if isinstance(guide, AutoGuideList):
        return [part for each in guide for part in _parts(each)]
    return [guide] if isinstance(guide, AutoGuide) else []


def _is_point_that_is_random(
    part: AutoGuide, params: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> bool:
    """Whether a call draws nothing, and ``sample_posterior`` depends on its key."""

    def run() -> tuple[dict[str, Any], dict[str, Any]]:
        data = marked(jax.random.key_data(jax.random.key(0)))
        key = jax.random.wrap_key_data(data)
        call = handlers.seed(with_params(part, params), key)
        with handlers.block():
            trace = handlers.trace(call).get_trace(*args, **kwargs)
        called = {
            f"call of {name}": site["value"]
            for name, site in trace.items()
            if site["type"] == "sample" and not _is_delta(site["fn"])
        }
        drawn = part.sample_posterior(key, params, *args, **kwargs)
        return {"key": data}, {"posterior": drawn, **called}

    found = dependence(run)
    return bool(found["posterior"]) and set(found) == {"posterior"}


def log_weights(
    model: Callable,
    drawn: GuideDraws,
    params: dict[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> np.ndarray | None:
    r"""Log importance weights :math:`\log p(y, \theta) - \log q(\theta)` in float64.

    In float32 the sums over data and parameters are off by more than the differences
    between draws that the Pareto fit is about. None if the guide is a flow that has no
    inverse (``AutoBNAFNormal``): the density of its draws cannot be had again.

    **Shapes**: ``(draw,)``.

    References:
        Yao, Vehtari, Simpson and Gelman, "Yes, but did it work?: Evaluating variational
        inference", ICML 2018.
    """
    with jax.enable_x64(True):
        params, args, kwargs = _doubled((params, args, kwargs))
        guide, model = full_data(drawn.guide, model=model), full_data(model)

        def one(random: dict[str, jax.Array]) -> jax.Array:
            run = handlers.seed(
                handlers.substitute(guide, data={**params, **random}), 0
            )
            trace = handlers.trace(run).get_trace(*args, **kwargs)
            values = {
                name: site["value"]
                for name, site in trace.items()
                if site["type"] == "sample" and not site["is_observed"]
            }
            of_guide = sum(
                jnp.sum(site["fn"].log_prob(site["value"]))
                for site in trace.values()
                if site["type"] == "sample" and not site["is_observed"]
            )
            of_model, _ = log_density(
                handlers.seed(model, 0), args, kwargs, {**params, **values}
            )
            return jnp.asarray(of_model - of_guide)

        random = _doubled(drawn.random)
        try:
            return np.asarray(jax.jit(lambda r: jax.lax.map(one, r))(random))
        except NotImplementedError:
            return None


def _is_delta(fn: Any) -> bool:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def _doubled(tree: Any) -> Any:
    """Floating arrays in float64."""

    def double(leaf: Any) -> Any:
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.asarray(np.asarray(leaf, np.float64))

    return jax.tree.map(double, tree)
