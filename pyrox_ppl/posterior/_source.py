"""The sources of a tree in one form: draws by chain, and what is known of them."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro
from jaxtyping import PRNGKeyArray
from numpyro.infer import HMC, MCMC, NUTS

from pyrox_ppl._cost import cost_of
from pyrox_ppl._divergence import check_trained_values
from pyrox_ppl._numpyro import has_collected, max_tree_depths
from pyrox_ppl._version import __version__
from pyrox_ppl.posterior._guide import GuideDraws, autoguides_of, draw_guide
from pyrox_ppl.prediction._draws import Draws
from pyrox_ppl.prediction._model_call import ModelCall
from pyrox_ppl.prediction._trained import arrays_by_path

# NumPyro's names of what a kernel reports, and ArviZ's.
_STATS = {
    "diverging": "diverging",
    "energy": "energy",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
    "adapt_state.step_size": "step_size",
    "adapt_state.L": "L",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Draws, and all that came with them.

    Attributes:
        draws: Site name -> array of shape ``(chain, draw, *site)``.
        params: Trained values of ``param`` and ``mutable`` sites.
        stats: What a kernel reported, under ArviZ's names.
        is_warmup: Whether the draws are those of the warmup.
        losses: The losses of SVI, step by step; of an ensemble ``(member, step)``.
        guide: The draws as the guide made them.
        by_chain: Of an ensemble, the trained values of all members, along one axis.
        linearized_at: The values of latent sites around which the model of the draws is
            linearised, along an axis of members (of one entry without an ensemble);
            empty where it is the model itself.
        attrs: The attributes of the tree's root: the kind of inference and its source.
    """

    draws: dict[str, np.ndarray]
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)
    is_warmup: bool = False
    losses: np.ndarray | None = None
    guide: GuideDraws | None = None
    by_chain: dict[str, Any] = dataclasses.field(default_factory=dict)
    linearized_at: dict[str, Any] = dataclasses.field(default_factory=dict)
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_ensemble(self) -> bool:
        """Whether the chains are the members of an ensemble."""
        return self.attrs.get("inference") == "ensemble"


def find_model(source: Any, guide: Callable | None) -> Callable | None:
    """The model that an MCMC or a guide knows; None for draws.

    Raises:
        ValueError: If an MCMC or a guide knows none.
    """
    if isinstance(source, MCMC):
        advice = (
            "to_datatree needs a kernel that was made from a model, NUTS(model), and "
            "this one was made from a potential function."
        )
        owner = source.sampler
    elif guide is not None:
        advice = (
            "this guide does not know its model: pass it, to_datatree(fit, ..., "
            "guide=guide, model=model)."
        )
        owner = guide
    else:
        return None
    model = getattr(owner, "model", None)
    if model is None:
        raise ValueError(advice)
    return model


def source_from_mcmc(mcmc: MCMC) -> Source:
    """The draws of a run MCMC."""
    if mcmc.last_state is None:
        raise ValueError("this MCMC has no draws: call mcmc.run(...) first.")
    if not has_collected(mcmc) or not mcmc.get_samples():
        raise ValueError(
            "this MCMC has only adapted and kept no draws: call mcmc.run(...), or "
            "mcmc.warmup(..., collect_warmup=True) to see the warmup."
        )
    fields: dict[str, Any] = dict(mcmc.get_extra_fields(group_by_chain=True))
    stats = {}
    for name, value in fields.items():
        short = name.removeprefix("hmc_state.")
        stats[_STATS.get(short, name)] = np.asarray(value)
    if "potential_energy" in stats:
        stats["lp"] = -stats.pop("potential_energy")
    attrs = {"inference": "MCMC", "kernel": type(mcmc.sampler).__name__}
    if getattr(mcmc.sampler, "is_unadjusted", False):
        attrs |= _describe_unadjusted(mcmc)
    kernel, is_warmup = _innermost(mcmc.sampler), _is_warmup(mcmc)
    if isinstance(kernel, NUTS):
        largest = max_tree_depths(kernel)
        attrs["max_tree_depth"] = int(largest[0 if is_warmup else 1])
        if "n_steps" in stats:
            # A trajectory of depth d has at most 2^d - 1 leapfrog steps.
            depth = np.ceil(np.log2(stats["n_steps"] + 1))
            stats["tree_depth"] = depth.astype(int)
    return Source(
        jax.device_get(mcmc.get_samples(group_by_chain=True)),
        stats=stats,
        is_warmup=is_warmup,
        attrs=attrs | _cost_of_mcmc(mcmc, stats),
    )


def _innermost(kernel: Any) -> Any:
    """The kernel that moves the continuous sites (in an ``HMCECS``, say), or itself."""
    while not isinstance(kernel, HMC) and hasattr(kernel, "inner_kernel"):
        kernel = kernel.inner_kernel
    return kernel


def _cost_of_mcmc(mcmc: MCMC, stats: dict[str, Any]) -> dict[str, Any]:
    """What is known of the cost of an MCMC.

    NumPyro's own ``run`` counts only the steps of draws that are kept, and these only
    with ``extra_fields=("num_steps",)``. MCLMC takes as many in every iteration.
    """
    known: dict[str, Any] = cost_of(mcmc).known()
    state: Any = mcmc.last_state
    if "gradient_evaluations" in known:
        return known
    if hasattr(state, "energy_error"):
        steps = int(np.max(state.i)) * mcmc.num_chains
        return known | {"gradient_evaluations": steps * int(np.max(state.num_steps))}
    if "n_steps" not in stats or mcmc.thinning > 1:
        return known
    known["gradient_evaluations"] = int(np.sum(stats["n_steps"]))
    return known | {"gradient_evaluations_of": "draws without warmup"}


def _describe_unadjusted(mcmc: MCMC) -> dict[str, Any]:
    """What `diagnose` needs to know of a kernel that accepts every step."""
    state: Any = mcmc.last_state
    return {"unadjusted": 1, "dimension": int(state.z.shape[-1])}


def _is_warmup(mcmc: MCMC) -> bool:
    """Whether the draws that an MCMC holds are those of its warmup."""
    state: Any = mcmc.last_state
    state = getattr(state, "hmc_state", state)
    steps = np.max(getattr(state, "i", mcmc.num_warmup + 1))
    return mcmc.post_warmup_state is mcmc.last_state and bool(steps <= mcmc.num_warmup)


def source_from_guide(
    fit: Any,
    guide: Callable,
    call: ModelCall,
    rng_key: PRNGKeyArray,
    num_samples: int,
) -> Source:
    """Draws from a trained guide, as one chain; of an ensemble a chain per member.

    An ensemble is a fit whose losses have two axes, ``(member, step)``. So are all of
    its trained values along a first axis of members.
    """
    state = getattr(getattr(fit, "state", None), "mutable_state", None) or {}
    params = {**state, **getattr(fit, "params", fit)}
    losses = getattr(fit, "losses", None)
    losses = None if losses is None else np.asarray(losses)
    members = len(losses) if losses is not None and losses.ndim == 2 else None
    check_trained_values(params, members)
    call = dataclasses.replace(call, params=params)
    drawn = draw_guide(guide, call, rng_key, num_samples, members)
    chains = members or 1
    attrs = {
        "inference": "SVI" if members is None else "ensemble",
        "guide": getattr(guide, "__name__", type(guide).__name__),
        # The points of several members differ.
        "point_estimate": int(drawn.is_point and members is None),
    }
    attrs |= {} if members is None else {"members": members}
    attrs |= cost_of(fit).known() | _epoch_kept(fit, members)
    return Source(
        {n: v.reshape(chains, -1, *v.shape[1:]) for n, v in drawn.values.items()},
        params=params if members is None else {},
        losses=losses,
        guide=drawn,
        by_chain={} if members is None else arrays_by_path(params),
        linearized_at=jax.device_get(_linearized_at(guide, params, members)),
        attrs=attrs,
    )


def _epoch_kept(fit: Any, members: int | None) -> dict[str, int]:
    """Which epoch held-out rows chose, if it was not the last: the run went on."""
    epochs = len(getattr(fit, "held_out", ()))
    if members is not None or epochs < 2 or fit.best_epoch == epochs - 1:
        return {}
    return {"best_epoch": int(fit.best_epoch), "epochs": epochs}


def _linearized_at(
    guide: Any, params: dict[str, Any], members: int | None
) -> dict[str, Any]:
    """The modes of a guide whose draws are those of the linearised model.

    Raises:
        ValueError: If only a part of the guide linearises.
    """
    if getattr(guide, "linearized", False):
        modes = guide.median(params)
        return modes if members else {n: value[None] for n, value in modes.items()}
    if any(getattr(part, "linearized", False) for part in autoguides_of(guide)):
        raise ValueError(
            "a part of this AutoGuideList linearises the model, but the others have no "
            "mode to do it at: make that part with linearized=False, or give the whole "
            "model to it and say with `where` which sites have a spread."
        )
    return {}


def source_from_draws(draws: Any, batch_ndims: int | None) -> Source:
    """A dictionary of draws, or the draws of another tree."""
    given = Draws.read(draws, batch_ndims)
    if len(given.shape) > 2:
        raise ValueError(
            "draws have the axes chain and draw, or only draw; got sample axes of "
            f"shape {given.shape}: give batch_ndims=1 or batch_ndims=2."
        )
    chains = given.shape if len(given.shape) == 2 else (1, *given.shape)
    values = {
        name: np.asarray(value).reshape(*chains, *np.shape(value)[1:])
        for name, value in given.values.items()
    }
    attrs = getattr(draws, "attrs", {})
    kept = ("inference", "kernel", "guide", "point_estimate")
    kept += ("unadjusted", "dimension")
    # What the draws cost.
    kept += ("seconds", "gradient_evaluations", "gradient_evaluations_of")
    origin = {name: attrs[name] for name in kept if name in attrs}
    if "members" in attrs:
        origin["members"] = chains[0]
    return Source(
        values,
        given.params,
        by_chain=dict(given.by_chain),
        linearized_at=given.latents_linearized_at,
        attrs={"inference": "draws"} | origin,
    )


def provenance(source: Source, rng_key: PRNGKeyArray) -> dict[str, Any]:
    """The attributes of a tree's root: how it was made, by what, with which key."""
    return {
        **source.attrs,
        "rng_key": json.dumps(jax.random.key_data(rng_key).tolist()),
        "pyrox_ppl_version": __version__,
        "numpyro_version": numpyro.__version__,
        "jax_version": jax.__version__,
    }
