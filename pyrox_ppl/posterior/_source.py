"""What to_datatree is given, brought to one form: draws by chain, and what is known."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import numpyro
from jaxtyping import PRNGKeyArray
from numpyro.infer import MCMC

from pyrox_ppl._numpyro import has_collected
from pyrox_ppl._version import __version__
from pyrox_ppl.posterior._guide import GuideDraws, draw_guide
from pyrox_ppl.prediction._draws import Draws

# NumPyro's names of what a kernel reports, and ArviZ's.
_STATS = {
    "diverging": "diverging",
    "energy": "energy",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
    "adapt_state.step_size": "step_size",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Draws, and all that came with them.

    Attributes:
        model: The NumPyro model, if it is known.
        draws: Site name -> array of shape ``(chain, draw, *site)``.
        params: Trained values of ``param`` and ``mutable`` sites.
        stats: What a kernel reported, under ArviZ's names.
        is_warmup: Whether the draws are those of the warmup.
        losses: The losses of SVI, step by step.
        guide: The draws as the guide made them.
        attrs: What the tree says of itself.
    """

    model: Callable | None
    draws: dict[str, np.ndarray]
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)
    is_warmup: bool = False
    losses: np.ndarray | None = None
    guide: GuideDraws | None = None
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)


def of_mcmc(
    mcmc: MCMC, model: Callable | None, params: Mapping[str, Any] | None
) -> Source:
    """The draws of a run MCMC, of its own model if no other one is given."""
    model = getattr(mcmc.sampler, "model", None) if model is None else model
    if model is None:
        raise ValueError(
            "to_datatree needs a kernel that was made from a model, and this one was "
            "made from a potential function."
        )
    if mcmc.last_state is None:
        raise ValueError("this MCMC has no draws: call mcmc.run(...) first.")
    if not has_collected(mcmc) or not mcmc.get_samples():
        raise ValueError(
            "this MCMC has only adapted, and collected nothing: call mcmc.run(...), or "
            "mcmc.warmup(..., collect_warmup=True) to see the warmup."
        )
    fields: dict[str, Any] = dict(mcmc.get_extra_fields(group_by_chain=True))
    stats = {}
    for name, value in fields.items():
        short = name.removeprefix("hmc_state.")
        stats[_STATS.get(short, name)] = np.asarray(value)
    if "potential_energy" in stats:
        stats["lp"] = -stats.pop("potential_energy")
    if "n_steps" in stats:
        # A trajectory of depth d has at most 2^d - 1 leapfrog steps.
        depth = np.ceil(np.log2(stats["n_steps"] + 1))
        stats["tree_depth"] = depth.astype(int)
    return Source(
        model,
        jax.device_get(mcmc.get_samples(group_by_chain=True)),
        params=dict(params or {}),
        stats=stats,
        is_warmup=_is_warmup(mcmc),
        attrs={"inference": "MCMC", "kernel": type(mcmc.sampler).__name__},
    )


def _is_warmup(mcmc: MCMC) -> bool:
    """Whether the draws that an MCMC holds are those of its warmup."""
    state: Any = mcmc.last_state
    state = getattr(state, "hmc_state", state)
    steps = np.max(getattr(state, "i", mcmc.num_warmup + 1))
    return mcmc.post_warmup_state is mcmc.last_state and bool(steps <= mcmc.num_warmup)


def of_guide(
    fit: Any,
    guide: Callable,
    model: Callable | None,
    args: tuple,
    kwargs: dict[str, Any],
    rng_key: PRNGKeyArray,
    num_samples: int,
) -> Source:
    """Draws from a trained guide, as one chain."""
    model = getattr(guide, "model", None) if model is None else model
    if model is None:
        raise ValueError(
            "this guide does not know its model: give it, to_datatree(fit, ..., "
            "guide=guide, model=model)."
        )
    state = getattr(getattr(fit, "state", None), "mutable_state", None) or {}
    params = {**getattr(fit, "params", fit), **state}
    drawn = draw_guide(guide, model, params, args, kwargs, rng_key, num_samples)
    losses = getattr(fit, "losses", None)
    return Source(
        model,
        {name: value[None] for name, value in drawn.values.items()},
        params=params,
        losses=None if losses is None else np.asarray(losses),
        guide=drawn,
        attrs={
            "inference": "SVI",
            "guide": getattr(guide, "__name__", type(guide).__name__),
            "point_estimate": int(drawn.is_point),
        },
    )


def of_draws(
    draws: Any,
    model: Callable | None,
    params: Mapping[str, Any] | None,
    batch_ndims: int | None,
) -> Source:
    """A dictionary of draws, or the draws of another tree."""
    given = Draws.of(draws, batch_ndims)
    if len(given.shape) > 2:
        raise ValueError(
            f"draws have the axes chain and draw, or draw alone; got {given.shape}."
        )
    chains = given.shape if len(given.shape) == 2 else (1, *given.shape)
    values = {
        name: np.asarray(value).reshape(*chains, *np.shape(value)[1:])
        for name, value in given.values.items()
    }
    return Source(
        model,
        values,
        params={**given.params, **(params or {})},
        attrs={"inference": "draws"} | _origin(draws),
    )


def _origin(draws: Any) -> dict[str, Any]:
    """What a tree of draws says of where they come from."""
    said = getattr(draws, "attrs", {})
    names = ("inference", "kernel", "guide", "point_estimate")
    return {name: said[name] for name in names if name in said}


def provenance(source: Source, rng_key: PRNGKeyArray) -> dict[str, Any]:
    """What the root of the tree says: how it was made, by what, with which key."""
    key = rng_key
    if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return {
        **source.attrs,
        "rng_key": json.dumps(np.asarray(key).tolist()),
        "pyrox_ppl_version": __version__,
        "numpyro_version": numpyro.__version__,
        "jax_version": jax.__version__,
    }
