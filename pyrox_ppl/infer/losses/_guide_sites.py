"""The sites of a guide whose posterior is a factorised normal."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import ExpandedDistribution, Independent, constraints
from numpyro.infer.autoguide import AutoDiagonalNormal


class NormalSite(NamedTuple):
    """A latent site with independent normal entries.

    Attributes:
        loc: The means.
        scale: The standard deviations.
        value: One draw, which the guide made.
        fn: The distribution, with the event dimensions of the site.
    """

    loc: jax.Array
    scale: jax.Array
    value: jax.Array
    fn: dist.Distribution


def find_normal_sites(
    guide: Callable,
    trace: Mapping[str, Any],
    run: Callable[[dict[str, jax.Array]], Mapping[str, Any]],
) -> dict[str, NormalSite]:
    """The factorised normals among the latent sites of a guide, by name.

    `run` traces the guide again with some of its sites given. NumPyro's guides over one
    vector are cut into sites: they copy the entries of the vector to a site whose
    support is the real line, so they also copy the vector of means, or of scales.
    """
    found = {}
    for name, site in trace.items():
        normal = _as_normal(site) if site["type"] == "sample" else None
        if normal is not None:
            found[name] = normal
    vector = next((name for name in found if _is_vector(guide, trace[name])), None)
    if vector is None:
        return {n: s for n, s in found.items() if not _is_auxiliary(trace[n])}
    whole = found[vector]
    locs, scales = (run({vector: part}) for part in (whole.loc, whole.scale))
    # The guide keeps the first run of the model, which knows the supports.
    prototype = getattr(guide, "prototype_trace", None) or {}
    parts = {}
    for name, site in trace.items():
        support = prototype[name]["fn"].support if name in prototype else None
        if site["type"] != "sample" or name == vector or not is_real(support):
            continue
        loc, scale = locs[name]["value"], scales[name]["value"]
        fn = dist.Normal(loc, scale).to_event(site["fn"].event_dim)
        parts[name] = NormalSite(loc, scale, site["value"], fn)
    return parts


def is_real(support: Any) -> bool:
    """Whether a support is the real line, for each entry."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _as_normal(site: Mapping[str, Any]) -> NormalSite | None:
    fn = site["fn"]
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    if type(fn) is not dist.Normal or site["is_observed"]:
        return None
    parts: tuple[Any, ...] = fn.loc, fn.scale
    loc, scale = (jnp.broadcast_to(part, jnp.shape(site["value"])) for part in parts)
    return NormalSite(loc, scale, site["value"], site["fn"])


def _is_auxiliary(site: Mapping[str, Any]) -> bool:
    return bool(site["infer"].get("is_auxiliary"))


def _is_vector(guide: Callable, site: Mapping[str, Any]) -> bool:
    return isinstance(guide, AutoDiagonalNormal) and _is_auxiliary(site)
