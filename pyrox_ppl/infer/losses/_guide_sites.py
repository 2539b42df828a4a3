"""The sites of a guide whose posterior is a factorised normal."""

from collections.abc import Callable, Mapping, Sequence
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
        source: The site of the guide that draws it: itself, or the guide's vector.
    """

    loc: jax.Array
    scale: jax.Array
    value: jax.Array
    fn: dist.Distribution
    source: str


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
        normal = _as_normal(name, site) if site["type"] == "sample" else None
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
        parts[name] = NormalSite(loc, scale, site["value"], fn, vector)
    return parts


def find_conditions(
    normals: Mapping[str, NormalSite],
    run: Callable[[dict[str, jax.Array]], Mapping[str, Any]],
) -> dict[str, str]:
    """The normals on whose draws another site of the guide depends, and which one.

    The other site knows one draw, so no row may have another.
    """
    # The parts of a vector are functions of the vector alone.
    names = [name for name, normal in normals.items() if normal.source == name]
    if not names:
        return {}
    others: list[str] = []

    def laws(values: list[jax.Array]) -> list[Any]:
        sites = run(dict(zip(names, values, strict=True)))
        laws = {n: site["fn"] for n, site in sites.items() if site["type"] == "sample"}
        others.extend(name for name, law in laws.items() for _ in jax.tree.leaves(law))
        return jax.tree.leaves(list(laws.values()))

    jaxpr = jax.make_jaxpr(laws)([normals[name].value for name in names]).jaxpr
    known: dict[Any, set[str]] = {
        var: {name} for var, name in zip(jaxpr.invars, names, strict=True)
    }

    def sources(atoms: Sequence[Any]) -> set[str]:
        read = (atom for atom in atoms if not hasattr(atom, "val"))
        return set().union(*(known.get(atom, ()) for atom in read))

    for eqn in jaxpr.eqns:
        found = sources(eqn.invars)
        known |= dict.fromkeys(eqn.outvars, found)
    return {
        name: f"the guide draws `{other}` given it"
        for other, atom in zip(others, jaxpr.outvars, strict=True)
        for name in sources([atom])
    }


def is_real(support: Any) -> bool:
    """Whether a support is the real line, for each entry."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _as_normal(name: str, site: Mapping[str, Any]) -> NormalSite | None:
    fn = site["fn"]
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    if type(fn) is not dist.Normal or site["is_observed"]:
        return None
    parts: tuple[Any, ...] = fn.loc, fn.scale
    loc, scale = (jnp.broadcast_to(part, jnp.shape(site["value"])) for part in parts)
    return NormalSite(loc, scale, site["value"], site["fn"], name)


def _is_auxiliary(site: Mapping[str, Any]) -> bool:
    return bool(site["infer"].get("is_auxiliary"))


def _is_vector(guide: Callable, site: Mapping[str, Any]) -> bool:
    return isinstance(guide, AutoDiagonalNormal) and _is_auxiliary(site)
