"""Latent sites at given values, with the density of their unconstrained values."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.distributions.util import sum_rightmost

from pyrox_ppl._dependence import find_dependence, mark


def latent_sites(guide: Any) -> dict[str, Any]:
    """The latent sites of a guide's model, as the guide's first run found them.

    Raises:
        ValueError: If the guide has not run yet.
    """
    if guide.prototype_trace is None:
        raise ValueError(
            "the guide has not seen the model yet: run it once, for example by "
            "svi.init(rng_key, *args), before it is asked for a posterior."
        )
    return {
        name: site
        for name, site in guide.prototype_trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def transform_of(site: dict[str, Any]) -> Any:
    """The map from unconstrained values to the site's support."""
    return biject_to(site["fn"].support)


def constrain(sites: dict[str, Any], values: dict[str, Any]) -> dict[str, jax.Array]:
    """The values on the supports of their sites."""
    return {name: transform_of(sites[name])(u) for name, u in values.items()}


def make_plates(sites: dict[str, Any]) -> dict[str, numpyro.plate]:
    """A plate for each plate around the sites. None may be made inside another."""
    frames = {f.name: f for site in sites.values() for f in site["cond_indep_stack"]}
    return {
        name: numpyro.plate(name, frame.size, dim=frame.dim)
        for name, frame in sorted(frames.items())
    }


def sample_at(
    site: dict[str, Any], value: jax.Array, plates: dict[str, numpyro.plate]
) -> Any:
    """Sample a site at a value, with the density of its unconstrained value.

    The objective of SVI is then the posterior density over unconstrained values.
    """
    transform, event_dim = transform_of(site), site["fn"].event_dim
    volume = transform.log_abs_det_jacobian(transform.inv(value), value)
    volume = sum_rightmost(volume, volume.ndim - value.ndim + event_dim)
    with contextlib.ExitStack() as stack:
        for frame in site["cond_indep_stack"]:
            stack.enter_context(plates[frame.name])
        law = dist.Delta(value, log_density=-volume, event_dim=event_dim)
        return numpyro.sample(site["name"], law)


def check_fixed_supports(
    sites: dict[str, Any], model: Callable, args: tuple, kwargs: dict[str, Any]
) -> None:
    """Refuse a site whose support moves with another latent site.

    The support is that of one run of the model, from whose values a fit moves away.

    Raises:
        ValueError: If a support moves.
    """
    bounded = [
        name
        for name, site in sites.items()
        if any(isinstance(b, jax.Array) for b in jax.tree.leaves(site["fn"].support))
    ]
    if not bounded:
        return

    def values_and_supports() -> tuple[dict[str, Any], dict[str, Any]]:
        values = {name: mark(site["value"]) for name, site in sites.items()}
        run = handlers.substitute(handlers.seed(model, 0), data=values)
        with handlers.block():
            trace = handlers.trace(run).get_trace(*args, **kwargs)
        supports = {name: trace[name]["fn"].support for name in bounded}
        return values, {name: jax.tree.leaves(s) for name, s in supports.items()}

    for name, causes in find_dependence(values_and_supports).items():
        if causes:
            raise ValueError(
                f"the support of the site {name!r} depends on {sorted(causes)}, and "
                "this guide needs supports that stay where they are: sample a value on "
                "a fixed support and transform it in the model, for example multiply "
                "Uniform(0, 1) by a in place of Uniform(0, a)."
            )


def check_whole_plates(sites: dict[str, Any], trace: Any, advice: str) -> None:
    """Raise unless there are latent sites, and every step sees all of them.

    Args:
        sites: The latent sites.
        trace: The run of the model that they are from.
        advice: Why the guide needs all of them, and what to do.
    """
    if not sites:
        raise RuntimeError(
            "the guide found no latent sites in the model: give some parameter a "
            "prior, by bayesianize or numpyro.sample."
        )
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            size = trace[frame.name]["args"][0]
            if size != frame.size:
                raise ValueError(
                    f"the latent site {name!r} stands in the plate {frame.name!r}, of "
                    f"which a step sees {frame.size} of its {size} members, so {advice}"
                )
