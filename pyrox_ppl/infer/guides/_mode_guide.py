"""The base of guides that SVI trains to the mode in unconstrained space."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.autoguide import AutoDelta

from pyrox_ppl.infer.guides._unconstrained import (
    check_fixed_supports,
    check_whole_plates,
    constrain,
    latent_sites,
    make_plates,
    sample_at,
    transform_of,
)

Draws = dict[str, jax.Array]

_WHOLE_PLATES = (
    "it has no curvature over all data: give such sites AmortizedGuide, or the plate "
    "all of its members."
)


class AbstractModeGuide(AutoDelta):
    """A guide that is a point when it is called: the mode of the joint density.

    ``AutoDelta`` finds the mode in constrained space. Here each point has the density
    of its unconstrained value, so that the mode is that of unconstrained space, around
    which a normal distribution can lie.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Draws:
        """Sample every latent site at the mode; the arguments are the model's.

        Returns:
            The values of the latent sites, by name.
        """
        is_first = self.prototype_trace is None
        # AutoDelta's own sample sites have the density of the constrained space.
        with handlers.block(hide_fn=lambda msg: msg["type"] in ("sample", "plate")):
            values = super().__call__(*args, **kwargs)
        sites = latent_sites(self)
        if is_first:
            check_whole_plates(sites, self.prototype_trace, _WHOLE_PLATES)
            check_fixed_supports(sites, self.model, args, kwargs)
            self._check_latents(sites)
        plates = make_plates(sites)
        return {n: sample_at(sites[n], value, plates) for n, value in values.items()}

    def median(self, params: Mapping[str, Any]) -> Draws:
        """The median of every latent site: the mode, constrained."""
        latents = self._latents(params)
        return {name: jnp.asarray(params[self._loc(name)]) for name in latents}

    def _check_latents(self, latents: Mapping[str, Any]) -> None:
        """Refuse latent sites that the guide cannot have, by their messages."""

    def _loc(self, name: str) -> str:
        return f"{name}_{self.prefix}_loc"

    def _latents(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The latent sites of the model, all of which have a location."""
        sites = latent_sites(self)
        missing = [name for name in sites if self._loc(name) not in params]
        if missing:
            raise ValueError(
                f"the parameters have no location for the sites {missing}; they are "
                f"{sorted(params)}: pass the fit of this guide."
            )
        scales = [n for n in sites if f"{n}_{self.prefix}_scale" in params]
        if scales:
            raise ValueError(
                f"the parameters have a scale for the sites {scales}: they belong to a "
                "guide such as AutoNormal, whose location is no mode. Pass the fit of "
                "this guide, or of AutoDelta."
            )
        return sites

    def _num_members(self, params: Mapping[str, Any]) -> int | None:
        """How many members of an ensemble the parameters are of; None for one fit."""
        members = None
        for name, site in self._latents(params).items():
            shape, own = np.shape(params[self._loc(name)]), np.shape(site["value"])
            if len(shape) == len(own) + 1 and shape[1:] == own:
                members = shape[0]
        return members

    def _check_one_fit(self, params: Mapping[str, Any]) -> None:
        if self._num_members(params) is not None:
            raise ValueError(
                "these are the parameters of all members of an ensemble: give those of "
                "one, jax.tree.map(lambda value: value[0], fit.params). to_datatree "
                "takes all."
            )

    def _unconstrained(self, params: Mapping[str, Any]) -> Draws:
        return {
            name: transform_of(site).inv(jnp.asarray(params[self._loc(name)]))
            for name, site in self._latents(params).items()
        }

    def _to_latents(self, values: Draws) -> Draws:
        return constrain(latent_sites(self), values)
