"""Which latent sites a glob or a predicate selects."""

from collections.abc import Mapping
from typing import Any

from pyrox_ppl._where import check_takes_parameter, matches


def select_sites(where: Any, latents: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the selected sites, all of them if `where` is None.

    Args:
        where: A glob on names, a sequence of globs, or a predicate on Parameter.
        latents: The latent sites, by name.

    Raises:
        TypeError: If `where` is none of these.
        ValueError: If a glob, or the predicate, selects nothing.
    """
    if where is None:
        return tuple(latents)
    if callable(where):
        check_takes_parameter("where", where)
        parameters = {name: site.get("parameter") for name, site in latents.items()}
        chosen = tuple(n for n, p in parameters.items() if p is not None and where(p))
        if not chosen:
            raise ValueError(
                "the predicate `where` selects no site. The parameters of modules "
                f"among the latent sites are {[n for n, p in parameters.items() if p]}."
            )
        return chosen
    globs = (where,) if isinstance(where, str) else tuple(where)
    if not all(isinstance(glob, str) for glob in globs):
        raise TypeError(
            "where must be a glob on names of sites, a sequence of globs or a "
            f"predicate on Parameter, got {where!r}."
        )
    found = {
        glob: [n for n in latents if _matches(latents[n], n, glob)] for glob in globs
    }
    nothing = [glob for glob, names in found.items() if not names]
    if nothing or not globs:
        raise ValueError(
            f"the globs {nothing} of `where` match no latent site: those are "
            f"{list(latents)}."
        )
    return tuple(n for n in latents if any(n in names for names in found.values()))


def _matches(site: Mapping[str, Any], name: str, glob: str) -> bool:
    parameter = site.get("parameter")
    # A tied array has a name for each of its places.
    names = (name, *(parameter.names if parameter is not None else ()))
    return any(matches(one, glob) for one in names)
