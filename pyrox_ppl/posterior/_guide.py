"""Draws from a trained guide, and how well the guide fits: importance weights."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import Delta, Distribution, Independent
from numpyro.distributions.transforms import Transform
from numpyro.infer.autoguide import AutoGuide, AutoGuideList

from pyrox_ppl.prediction._dependence import dependence, marked
from pyrox_ppl.prediction._full_data import full_data, is_factor
from pyrox_ppl.prediction._loop import (
    CHUNK_BYTES,
    bytes_of,
    even_size,
    keys_of_draws,
    map_draws,
)
from pyrox_ppl.prediction._trained import check_trained, with_params


@dataclasses.dataclass(frozen=True)
class GuideDraws:
    """The draws of a guide.

    Attributes:
        guide: The guide.
        values: The draws of the model's sites.
        random: The draws of the sites that the guide draws at random, from which all
            others follow.
        is_point: Whether nothing is random: a point estimate.
        trained: The names of its ``param`` and ``mutable`` sites.
        has_density: Whether a call of the guide says how dense its draws are.
    """

    guide: Callable
    values: dict[str, np.ndarray]
    random: dict[str, np.ndarray]
    is_point: bool
    trained: frozenset[str] = frozenset()
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

    Raises:
        ValueError: If the guide has parameters of which there are no trained values.
    """
    auxiliary: set[str] = set()
    random: set[str] = set()
    trained: set[str] = set()
    run = full_data(with_params(guide, params), model=with_params(model, params))

    def one(key: jax.Array) -> dict[str, jax.Array]:
        trace = handlers.trace(handlers.seed(run, key)).get_trace(*args, **kwargs)
        check_trained(trace, params, of="guide")
        trained.update(n for n, s in trace.items() if s["type"] in ("param", "mutable"))
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
        frozenset(trained),
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
    between draws that the Pareto fit is about. So the model and the guide run in their
    own dtype, as they do everywhere else, and the density of every site is evaluated,
    and summed, in float64 on the values and distributions that they came to. None if
    the guide is a flow that has no inverse (``AutoBNAFNormal``): the density of its
    draws cannot be had again.

    **Shapes**: ``(draw,)``.

    References:
        Yao, Vehtari, Simpson and Gelman, "Yes, but did it work?: Evaluating variational
        inference", ICML 2018.
    """
    own_x64 = bool(jax.config.jax_enable_x64)
    trained = with_params(model, params)
    guide = full_data(with_params(drawn.guide, params), model=trained)
    model = full_data(trained)

    def sites(function: Callable, data: dict[str, Any]) -> list[dict[str, Any]]:
        run = handlers.seed(handlers.substitute(function, data=data), 0)
        trace = handlers.trace(run).get_trace(*args, **kwargs)
        return [site for site in trace.values() if site["type"] == "sample"]

    def one(random: dict[str, jax.Array]) -> jax.Array:
        with jax.enable_x64(own_x64):
            of_guide = [
                site for site in sites(guide, random) if not site["is_observed"]
            ]
            values = {site["name"]: site["value"] for site in of_guide}
            of_model = sites(model, values)
        log_q = sum(jnp.sum(_density(site)) for site in of_guide)
        log_p = sum(jnp.sum(_scale(site) * _density(site)) for site in of_model)
        return jnp.asarray(log_p - log_q)

    number = len(next(iter(drawn.random.values())))
    # A chunk of draws at a time: a copy of all of them may not fit into memory.
    size = even_size(number, CHUNK_BYTES // max(1, bytes_of(drawn.random) // number))
    weights = np.empty(number)
    with jax.enable_x64(True):
        loop = jax.jit(lambda chunk: jax.lax.map(one, chunk))
        try:
            for start in range(0, number, size):
                begin = min(start, number - size)
                where = slice(begin, begin + size)
                weights[where] = loop({n: v[where] for n, v in drawn.random.items()})
        except NotImplementedError:
            return None
    return weights


def _density(site: dict[str, Any]) -> jax.Array:
    """The log density of a site's value, element by element, in float64."""
    return jnp.asarray(_doubled(site["fn"]).log_prob(_doubled(site["value"])))


def _scale(site: dict[str, Any]) -> Any:
    return 1.0 if site["scale"] is None else _doubled(site["scale"])


def _is_delta(fn: Any) -> bool:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def _doubled(tree: Any) -> Any:
    """Floating arrays in float64, those of distributions and transforms too.

    A distribution is copied with its attributes: a user's own need not be a pytree.
    """

    def double(leaf: Any) -> Any:
        if isinstance(leaf, Distribution | Transform):
            new = copy.copy(leaf)
            vars(new).update(_doubled(vars(leaf)))
            return new
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
            return jnp.asarray(leaf, jnp.float64)
        return leaf

    def is_whole(node: Any) -> bool:
        return isinstance(node, Distribution | Transform)

    return jax.tree.map(double, tree, is_leaf=is_whole)
