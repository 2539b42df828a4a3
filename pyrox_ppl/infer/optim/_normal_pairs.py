"""Which param sites are the mean and the scale of a guide's normals."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to
from numpyro.primitives import Messenger

_POSITIVE = (constraints.softplus_positive, constraints.positive)


def find_pairs(names: Iterable[str], given: Mapping[str, str | None]) -> dict[str, str]:
    """The name of each mean, with that of its scale.

    Args:
        names: The names of param sites.
        given: Pairs that the names do not tell; None in place of a scale says that a
            name is no mean.

    Raises:
        ValueError: If there are none, or given names are absent.
    """
    names = sorted(names)
    pairs: dict[str, str | None] = {}
    for name in names:
        scale = f"{name.removesuffix('loc')}scale"
        if name.endswith("loc") and scale in names:
            pairs[name] = scale
    pairs |= given
    found = {loc: scale for loc, scale in pairs.items() if scale is not None}
    absent = sorted({name for pair in found.items() for name in pair} - set(names))
    if absent:
        raise ValueError(f"`pairs` names {absent}, but the param sites are {names}.")
    if not found:
        raise ValueError(
            "IVON found no pair of param sites whose names differ in the ending 'loc' "
            f"and 'scale' alone, among {names}. It optimises guides of independent "
            "normals, such as AutoNormal. If yours has other names, pass "
            "pairs={'<mean>': '<scale>'}; for another guide use Adam."
        )
    return found


class SiteRecorder(Messenger):
    """A handler that keeps the param and latent sites of a loss while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        """Forget all sites: JAX may trace a loss more than once."""
        self._params: list[dict[str, Any]] = []
        self._latents: dict[str, dict[str, Any]] = {}

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Keep a message, whose value a plate around the site may still change."""
        if msg["type"] == "param":
            self._params.append(msg)
        elif msg["type"] == "sample" and not msg["is_observed"]:
            # A loss runs the guide first. The model's site of the same name is a prior.
            self._latents.setdefault(msg["name"], msg)

    def find_transforms(
        self, pairs: Mapping[str, str], given: Mapping[str, str | None]
    ) -> dict[str, Transform]:
        """The map from unconstrained values to the scale, by the name of its mean.

        Args:
            pairs: The names of means and scales.
            given: The names about which the user has decided.

        Raises:
            ValueError: If a pair is not one normal of the guide, if a normal of the
                guide is not among the pairs, or if a constraint is not expected.
        """
        normals = self._find_normals()
        for loc, scale in normals:
            if loc not in pairs and loc not in given:
                raise ValueError(
                    f"the guide samples Normal({loc}, {scale}), whose names IVON does "
                    f"not know as a pair: pass pairs={{{loc!r}: {scale!r}}}, or "
                    f"pairs={{{loc!r}: None}} to leave the two to its other optimiser."
                )
        for pair in pairs.items():
            if normals.count(pair) != 1:
                loc, scale = pair
                raise ValueError(
                    f"{loc!r} and {scale!r} are a pair by name, but the guide samples "
                    f"Normal({loc}, {scale}), with one draw an entry, at "
                    f"{normals.count(pair)} sites instead of one. IVON optimises "
                    "independent normals: for a guide of another family use Adam. If "
                    f"the two are no such pair, pass pairs={{{loc!r}: None}}."
                )
        bounds = {
            msg["name"]: msg["kwargs"].get("constraint", constraints.real)
            for msg in self._params
        }
        for loc, scale in pairs.items():
            if bounds[loc] is not constraints.real or bounds[scale] not in _POSITIVE:
                raise ValueError(
                    f"{loc!r} has the constraint {bounds[loc]} and {scale!r} has "
                    f"{bounds[scale]}. IVON needs a real mean, and a scale whose "
                    "constraint is softplus_positive or positive."
                )
        return {loc: biject_to(bounds[scale]) for loc, scale in pairs.items()}

    def _find_normals(self) -> list[tuple[str, str]]:
        """The names of mean and scale of each normal that has param sites for both."""
        # A normal holds the very arrays that its param sites returned.
        names = {id(msg["value"]): msg["name"] for msg in self._params}
        normals = []
        for msg in self._latents.values():
            normal = _find_base_normal(msg["fn"])
            if normal is not None:
                loc, scale = names.get(id(normal.loc)), names.get(id(normal.scale))
                if loc is not None and scale is not None:
                    normals.append((loc, scale))
        return normals


def _find_base_normal(fn: Any) -> dist.Normal | None:
    """The normal in unconstrained space that a guide's site is made from, if any."""
    while not isinstance(fn, dist.Normal):
        if isinstance(fn, dist.ExpandedDistribution):
            # Several draws of one normal would need another step.
            if math.prod(fn.batch_shape) != math.prod(fn.base_dist.batch_shape):
                return None
        elif not isinstance(fn, dist.Independent | dist.TransformedDistribution):
            return None
        fn = fn.base_dist
    return fn
