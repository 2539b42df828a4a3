"""Prior scales that maximise the evidence of a linearised model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from pyrox_ppl._dependence import find_dependence, mark
from pyrox_ppl.infer.curvature import ModelAtMode
from pyrox_ppl.infer.guides._laplace_fit import LaplaceFit, Values, with_all_digits
from pyrox_ppl.infer.guides._laplace_pass import batches_of
from pyrox_ppl.infer.guides._select_sites import select_sites

_MOST_STEPS = 1000


class _Prior(NamedTuple):
    """A normal prior, each part in the shape of the site."""

    loc: jax.Array
    scale: jax.Array


@with_all_digits
def find_scales(
    fit: LaplaceFit,
    model: Callable,
    mode: Values,
    params: Mapping[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
    *,
    groups: Sequence[str] | None,
    damping: float,
) -> dict[str, dist.Distribution]:
    r"""The priors of maximal evidence (see :meth:`AutoLaplace.tune_prior`).

    At the maximum, each group's precision :math:`k` (relative to the prior that was
    given, :math:`p`) satisfies MacKay's equation

    .. math::
        k = \frac{\sum_i (1 - k\, p_i\, \Sigma_{ii})}{\sum_i p_i (\theta_i - m_i)^2},

    whose numerator counts the weights that the data determine. It is iterated.

    Raises:
        ValueError: If a prior is not a Normal of fixed scale, if a glob matches no
            site, or if the iteration does not converge.
    """
    run, batches = batches_of(model, args)
    first = next(batches())[0]
    trace = ModelAtMode(run, mode, params=params).trace({}, first, kwargs)
    latents = {name: trace[name] for name in fit.gradient}
    members = _members(groups, latents)
    chosen = [name for names in members for name in names]
    priors = {name: _prior_of(name, latents[name]) for name in chosen}
    _check_fixed(chosen, run, mode, params, first, kwargs)
    start = {name: mode[name] for name in chosen}
    factors = jnp.ones(len(members))
    for _ in range(_MOST_STEPS):
        determined, distance = _sums(
            fit.curvature,
            fit.prior,
            fit.gradient,
            start,
            priors,
            factors,
            members,
            damping,
        )
        if jnp.all(
            jnp.abs(determined - factors * distance) <= _tolerance(fit, members)
        ):
            break
        factors = jnp.maximum(determined, jnp.finfo(factors.dtype).tiny) / distance
    else:
        raise ValueError(
            f"the prior scales have not converged in {_MOST_STEPS} iterations; the "
            f"groups are {members}. Tune fewer groups: give `groups`."
        )
    return {
        name: dist.Normal(_uniform(prior.loc), _uniform(prior.scale) / jnp.sqrt(factor))
        for names, factor in zip(members, factors, strict=True)
        for name, prior in ((name, priors[name]) for name in names)
    }


@eqx.filter_jit
def _sums(
    curvature: Any,
    prior: Any,
    gradient: Values,
    mode: Values,
    priors: dict[str, _Prior],
    factors: jax.Array,
    members: tuple[tuple[str, ...], ...],
    damping: float,
) -> tuple[jax.Array, jax.Array]:
    """How many weights the data determine, and how far they are from the centre."""
    factor = {n: factors[i] for i, names in enumerate(members) for n in names}
    posterior = curvature.posterior(prior.scale(factor), damping=damping)
    precision = {name: p.scale**-2 for name, p in priors.items()}
    pull = {
        name: (
            g - factor[name] * precision[name] * (mode[name] - priors[name].loc)
            if name in factor
            else g
        )
        for name, g in gradient.items()
    }
    moved, variance = posterior.solve(pull), posterior.diagonal()

    def total(of: Callable[[str], jax.Array]) -> jax.Array:
        return jnp.stack([sum(jnp.sum(of(n)) for n in names) for names in members])

    determined = total(lambda n: 1 - factor[n] * precision[n] * variance[n])
    distance = total(lambda n: precision[n] * (mode[n] + moved[n] - priors[n].loc) ** 2)
    return determined, distance


def _members(
    groups: Sequence[str] | None, latents: Mapping[str, Any]
) -> tuple[tuple[str, ...], ...]:
    """The sites of each group."""
    if groups is None:
        return tuple((name,) for name in latents)
    members = [select_sites(glob, latents) for glob in groups]
    names = [name for group in members for name in group]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"the sites {twice} are in several of the groups {list(groups)}: each site "
            "has one scale."
        )
    return tuple(members)


def _prior_of(name: str, site: Mapping[str, Any]) -> _Prior:
    fn = site["fn"]
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    if type(fn) is not dist.Normal or site["scale"] is not None:
        raise ValueError(
            f"the prior of the site {name!r} is {type(fn).__name__}"
            + (" with a scale" if site["scale"] is not None else "")
            + ", and only the scale of a Normal can be tuned: name the others' sites "
            "in `groups`, or leave this one out with `where`."
        )
    if "loc_scale" in site:
        raise ValueError(
            f"the site {name!r} is the noise of a non-centred prior, whose scale is "
            "elsewhere in the model: tune a centred prior."
        )
    value = site["value"]
    loc, scale = (jnp.asarray(part, value.dtype) for part in (fn.loc, fn.scale))
    return _Prior(*(jnp.broadcast_to(part, value.shape) for part in (loc, scale)))


def _check_fixed(
    names: list[str],
    model: Callable,
    mode: Values,
    params: Mapping[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> None:
    """Refuse a prior that depends on other latents.

    Raises:
        ValueError: If one does.
    """

    def latents_and_priors() -> tuple[dict[str, Any], dict[str, Any]]:
        marked = {name: mark(value) for name, value in mode.items()}
        trace = ModelAtMode(model, marked, params=params).trace({}, args, kwargs)
        return marked, {name: jax.tree.leaves(trace[name]["fn"]) for name in names}

    for name, causes in find_dependence(latents_and_priors).items():
        if causes:
            raise ValueError(
                f"the prior of the site {name!r} depends on {sorted(causes)}, so its "
                "scale is inferred already: leave it out of `groups`."
            )


def _tolerance(fit: LaplaceFit, members: tuple[tuple[str, ...], ...]) -> jax.Array:
    sizes = [sum(fit.gradient[name].size for name in names) for names in members]
    dtype = jnp.result_type(*(value.dtype for value in fit.gradient.values()))
    return jnp.asarray(sizes) * 10 * float(jnp.finfo(dtype).eps) ** 0.75


def _uniform(value: jax.Array) -> Any:
    """An array of equal entries as a number."""
    entries = np.asarray(value)
    return value.reshape(-1)[0] if (entries == entries.flat[0]).all() else value
