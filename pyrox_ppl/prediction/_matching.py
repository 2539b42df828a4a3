"""Draws and trained values, matched by name to the parameters of a module."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pyrox_ppl._dict_order import rebuild
from pyrox_ppl._parameter import Read, class_name, parameters_of, path_name
from pyrox_ppl.prediction._draws import Draws

# NumPyro's reparameterisations of a site sample another one: site + suffix.
REPARAMETERISED = ("_decentered", "_base", "_normal", "_unwrapped")


def match_draws(
    module: Any,
    draws: Draws,
    name: str | None,
    params: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[int, Any]]:
    """The module with its trained values, and the draws of its leaves by position."""
    root = class_name(module) if name is None else name
    reads = {read.parameter.name: read for read in parameters_of(module, root)}
    learned = _match_trained(reads, root, draws, params)
    _check(module, reads, root, draws, learned)
    leaves = jax.tree.leaves(module)
    by_position = {}
    of_members = {**draws.guide_by_chain, **draws.by_chain}
    for site, value in learned.items():
        if site in of_members and site not in (params or {}):
            each = np.repeat(np.asarray(value), draws.number // len(value), axis=0)
            for position in _positions(reads, root, site, draws):
                by_position[position] = _shape_draws(reads[site], each)
            continue
        one = _shape_draws(reads[site], np.asarray(value)[None])[0]
        for position in _positions(reads, root, site, draws):
            leaves[position] = one
    for site in reads:
        if site in draws.values:
            value = _shape_draws(reads[site], draws.values[site], draws)
            for position in _positions(reads, root, site, draws):
                by_position[position] = value
    return rebuild(module, leaves), by_position


def _match_trained(
    reads: Mapping[str, Read],
    root: str,
    draws: Draws,
    params: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The trained values of the parameters, each under a parameter's name."""
    parts = [
        site
        for site, value in (params or {}).items()
        if _is_under(site, root) and not hasattr(value, "shape")
    ]
    if parts:
        raise ValueError(
            f"the param sites {parts} are trees of arrays, not parameters that `learn` "
            "made sites: put them into the module yourself (`eqx.combine`, "
            "`eqx.tree_at`)."
        )
    of_guide = {**draws.guide_params, **draws.guide_by_chain}.items()
    encoders = {n: v for n, v in of_guide if n in reads and n not in draws.values}
    given = {**encoders, **draws.params, **draws.by_chain, **(params or {})}
    learned = {site: value for site, value in given.items() if site in reads}
    unknown = [
        site
        for site in given
        if _is_under(site, root)
        and site not in reads
        and not any(site.startswith((f"{n}.", f"{n}_")) for n in draws.values)
    ]
    of_autoguide = (*(f"{site}_" for site in draws.values), "auto_")
    foreign = [
        site
        for site in params or {}
        if site not in reads and not site.startswith(of_autoguide)
    ]
    if unknown or (foreign and not any(site in reads for site in params or {})):
        raise ValueError(
            f"the trained values do not match the module under the name {root!r}: "
            + (f"{unknown} are" if unknown else "they are")
            + " not its parameters"
            + f".\nIts parameters: {list(reads)}\nThe trained values: {list(given)}\n"
            + _advice(root, reads, given)
            + " If nothing of this module was learned, leave `params` out."
        )
    both = [site for site in learned if site in draws.values]
    if both:
        raise ValueError(
            f"there are both draws and trained values of {both}, but a parameter is "
            "either inferred or learned: they come from two fits."
        )
    return learned


def _check(
    module: Any,
    reads: Mapping[str, Read],
    root: str,
    draws: Draws,
    learned: Mapping[str, Any],
) -> None:
    """Raise if a draw would be dropped, or a parameter keep its stored value."""
    known = {
        name
        for site in reads
        if site in draws.values or site in learned
        for name in (site, *_tied_to(reads, root, site, draws))
    }
    undrawn = [site for site in reads if site not in known]
    halves = {
        other: site
        for site in undrawn
        for other in draws.values
        if _belongs_to(other, site)
    }
    if halves:
        raise ValueError(
            f"the draws hold {list(halves)}, from which the model makes "
            f"{sorted(set(halves.values()))}, but not these parameters themselves. "
            "NumPyro's Predictive, to_datatree(..., guide=guide) and "
            "to_datatree(draws, *args, model=model) compute them."
        )
    unknown = _foreign_sites(reads, root, draws, known)
    if unknown or not known:
        raise ValueError(
            f"the draws do not match {type(module).__name__} under the name {root!r}"
            + (f": {unknown} are not its parameters" if unknown else "")
            + f".\nIts parameters: {list(reads)}\nThe draws: {list(draws.values)}\n"
            + (f"The trained values: {list(draws.params)}\n" if draws.params else "")
            + _advice(root, reads, [*draws.values, *draws.params])
            + (
                " If they are other sites of the model, leave them out of the draws, "
                "or pass the tree of to_datatree(..., model=model), which says so."
                if unknown
                else ""
            )
        )
    for site in undrawn:
        stored = reads[site].stored
        twins = [n for n in known if _is_alike(stored, reads[n].stored)]
        if isinstance(stored, Tracer) and twins:
            raise ValueError(
                f"the module is an argument of a compiled or transformed function, and "
                f"there are draws of {twins[0]!r} but not of {site!r}, which has the "
                "same shape. Inside the function nothing shows whether the two are one "
                "tied array: use the module from outside, not as an argument."
            )


def _foreign_sites(
    reads: Mapping[str, Read], root: str, draws: Draws, known: Collection[str]
) -> list[str]:
    """Sites under the root that are, or may be, parameters of another module.

    A tree that was made with its model says which sites are parameters. In a
    dictionary, only sites that belong to a parameter (its scale, the noise behind it)
    are known not to be one.
    """
    records = {
        site: attrs.get("parameter")
        for site, attrs in draws.attrs.items()
        if site in draws.values
    }
    foreign = []
    for site in draws.values:
        if not _is_under(site, root) or site in reads:
            continue
        if any(records.values()):
            path = records.get(site)
            if path and site == f"{root}.{path}":
                foreign.append(site)
        elif not any(_belongs_to(site, parameter) for parameter in known):
            foreign.append(site)
    return foreign


def _is_under(site: str, root: str) -> bool:
    return site == root or site.startswith(f"{root}.")


def _belongs_to(site: str, parameter: str) -> bool:
    """Whether a site is a scale of a parameter, or the noise behind it."""
    suffix = site.removeprefix(parameter)
    return suffix != site and (suffix.startswith(".") or suffix in REPARAMETERISED)


def _is_alike(one: Any, other: Any) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _positions(
    reads: Mapping[str, Read], root: str, site: str, draws: Draws
) -> tuple[int, ...]:
    """The leaves that hold a parameter."""
    copies = [reads[name].positions for name in _tied_to(reads, root, site, draws)]
    return sum(copies, reads[site].positions)


def _tied_to(
    reads: Mapping[str, Read], root: str, site: str, draws: Draws
) -> list[str]:
    """The other parameters that were tied to this one when the model ran.

    A tree records them; in a copy of the module they may have become separate arrays.
    """
    paths = json.loads(draws.attrs.get(site, {}).get("tied", "[]"))
    names = [f"{root}.{path_name(tuple(path))}" for path in paths]
    return [name for name in names if name in reads and name != site]


def _advice(root: str, reads: Mapping[str, Read], sites: Collection[str]) -> str:
    """Suggest the root under which the sites would match, if there is one."""
    roots = {
        site.removesuffix(parameter.removeprefix(root))
        for site in sites
        for parameter in reads
        if parameter != root and site.endswith(parameter.removeprefix(root))
    } - {"", root}
    if not roots:
        return "Give the module that the model read."
    return "Did you mean " + " or ".join(f"name={r!r}" for r in sorted(roots)) + "?"


def _shape_draws(read: Read, value: Any, draws: Draws | None = None) -> Any:
    """Bring draws to the shape (draw, plate if there is one, *parameter)."""
    name, own = read.parameter.name, read.parameter.shape
    shape = np.shape(value)
    middle = shape[1 : max(1, len(shape) - len(own))]
    members = [size for size in middle if size != 1] or [1] * bool(middle)
    if shape[1:][len(middle) :] != own or len(members) > 1:
        raise ValueError(
            f"each draw of {name!r} has shape {shape[1:]}, the parameter has shape "
            f"{own}: they come from another module, or `batch_ndims` is not the number "
            "of their sample axes."
        )
    if len(middle) == 1 and draws is not None and draws.may_be_grouped:
        raise ValueError(
            f"the draws of {name!r} have shape {shape}, the parameter has shape {own}, "
            f"and every site has an axis of {middle[0]} after the first. Pass "
            "batch_ndims=2 if the draws are grouped by chain, batch_ndims=1 if that "
            "axis is the plate on which the module was bound."
        )
    is_real = not jnp.issubdtype(read.parameter.dtype, jnp.complexfloating)
    if is_real and np.iscomplexobj(value):
        raise ValueError(
            f"the draws of {name!r} are complex, but the parameter is real "
            f"({read.parameter.dtype}): pass draws of this parameter, or their real "
            "parts."
        )
    fitted = value.reshape(shape[0], *members, *own)
    return jnp.asarray(fitted).astype(read.parameter.dtype)
