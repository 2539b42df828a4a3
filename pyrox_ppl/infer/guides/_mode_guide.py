"""The base of guides that SVI trains to the mode in unconstrained space."""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.infer.autoguide import AutoDelta

Draws = dict[str, jax.Array]


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
        if is_first:
            self._check_sites(values)
        return {name: self._sample(name, value) for name, value in values.items()}

    def median(self, params: dict[str, Any]) -> Draws:
        """The median of every latent site: the mode, constrained."""
        return {name: params[self._loc(name)] for name in self._latents(params)}

    def _check_latents(self, latents: Mapping[str, Any]) -> None:
        """Refuse latent sites that the guide cannot have, by their messages."""

    def _loc(self, name: str) -> str:
        return f"{name}_{self.prefix}_loc"

    def _init_names(self) -> list[str]:
        if self.prototype_trace is None:
            raise ValueError(
                "the guide has not seen the model yet: run it once, for example by "
                "svi.init(rng_key, *args), before it is asked for a posterior."
            )
        return [
            name
            for name, site in self.prototype_trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        ]

    def _latents(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The latent sites of the model, all of which have a location."""
        names = self._init_names()
        missing = [name for name in names if self._loc(name) not in params]
        if missing:
            raise ValueError(
                f"the parameters have no location for the sites {missing}; they are "
                f"{sorted(params)}: pass the fit of this guide."
            )
        trace: Any = self.prototype_trace
        return {name: trace[name] for name in names}

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

    def _transform(self, name: str) -> Any:
        trace: Any = self.prototype_trace
        return biject_to(trace[name]["fn"].support)

    def _unconstrained(self, params: Mapping[str, Any]) -> Draws:
        return {
            name: self._transform(name).inv(jnp.asarray(params[self._loc(name)]))
            for name in self._latents(params)
        }

    def _to_latents(self, values: Draws) -> Draws:
        return {name: self._transform(name)(value) for name, value in values.items()}

    def _sample(self, name: str, value: jax.Array) -> Any:
        """Sample a site at a value, with the density of its unconstrained value."""
        trace: Any = self.prototype_trace
        site, transform = trace[name], self._transform(name)
        volume = transform.log_abs_det_jacobian(transform.inv(value), value)
        event_dim = site["fn"].event_dim
        volume = sum_rightmost(volume, volume.ndim - value.ndim + event_dim)
        with contextlib.ExitStack() as stack:
            for frame in site["cond_indep_stack"]:
                stack.enter_context(
                    numpyro.plate(frame.name, frame.size, dim=frame.dim)
                )
            fn = dist.Delta(value, log_density=-volume, event_dim=event_dim)
            return numpyro.sample(name, fn)

    def _check_sites(self, values: Draws) -> None:
        if not values:
            raise RuntimeError(
                "the guide found no latent sites in the model: give some parameter a "
                "prior, by bayesianize or numpyro.sample."
            )
        trace: Any = self.prototype_trace
        for name in values:
            for frame in trace[name]["cond_indep_stack"]:
                size = trace[frame.name]["args"][0]
                if size != frame.size:
                    raise ValueError(
                        f"the latent site {name!r} stands in the plate {frame.name!r}, "
                        f"of which a step sees {frame.size} of {size} members, so it "
                        "has no curvature over all data: give such sites "
                        "AmortizedGuide, or the plate all of its members."
                    )
        self._check_latents({name: trace[name] for name in values})
