"""What a run of a model shows: its sites, and the names of their axes."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import numpy as np
from numpyro.distributions import ExpandedDistribution, Independent, MaskedDistribution

from pyrox_ppl._full_data import is_factor
from pyrox_ppl._numpyro import mask_of_distribution
from pyrox_ppl._observed_shapes import CheckObservedShapes
from pyrox_ppl._parameter import Parameter
from pyrox_ppl._support import support_name
from pyrox_ppl.posterior._axes import (
    DRAWS,
    free_axis,
    parameter_axes,
    plate_axes,
    plate_labels,
    variable_name,
)
from pyrox_ppl.posterior._marginal import UndrawnDiscrete
from pyrox_ppl.prediction._model_call import ModelCall, check_draws
from pyrox_ppl.prediction._outcome import Outcome, outcome_of


@dataclass(frozen=True)
class ModelSites:
    """The sites of one run of a model with its draws in place; by default none.

    Attributes:
        latent: Names of the sample sites that were drawn.
        observed: The observations by site, ``factor`` left out.
        factors: Names of the ``factor`` sites.
        masks: For sites that are partly observed, which entries are.
        element_masks: For sites with partly observed events, which single values are.
        deterministic: Names of the deterministic sites.
        trained: Names of the ``param`` and ``mutable`` sites.
        has_discrete_latent: Whether a latent site is discrete.
        outcomes: For the sites that were not drawn, what kind of outcome they have.
        discrete: The discrete latents that were summed out, not drawn.
        plates: For every site the plates of its axes from the right: None for the axes
            of an event, which come first, and for others on no plate.
        event_dims: For every sample site the number of its event axes.
        parameters: The parameters of modules among the sites.
        supports: The names of the supports of those that are constrained.
        variables: The names of variables, which no axis may have.
    """

    latent: tuple[str, ...] = ()
    observed: dict[str, Any] = field(default_factory=dict)
    factors: tuple[str, ...] = ()
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    element_masks: dict[str, np.ndarray] = field(default_factory=dict)
    deterministic: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    has_discrete_latent: bool = False
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    discrete: UndrawnDiscrete = field(default_factory=UndrawnDiscrete)
    plates: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    event_dims: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    supports: dict[str, str] = field(default_factory=dict)
    variables: frozenset[str] = frozenset(DRAWS)

    @classmethod
    def inspect(
        cls, call: ModelCall, draws: Mapping[str, Any], *, check: bool = True
    ) -> Self:
        """Run the model once, at the first draw.

        Args:
            call: The call of the model.
            draws: Site name -> array with two sample axes.
            check: Whether the latent sites must be those that were drawn.

        Raises:
            ValueError: If the sample sites of the model are not those that were drawn,
                or have another shape; if observations and their distribution
                broadcast each other.
        """
        # JAX arrays, because a scan indexes them with a traced step.
        first = jax.device_put({name: value[0, 0] for name, value in draws.items()})
        with CheckObservedShapes():
            trace = call.trace(first)
        sample = {n: s for n, s in trace.items() if s["type"] == "sample"}
        latent = {n: s for n, s in sample.items() if not s["is_observed"]}
        check_draws(latent, draws)
        discrete = {n for n, s in latent.items() if s["fn"].support.is_discrete}
        observed = {
            name: site["value"]
            for name, site in sample.items()
            if site["is_observed"] and not is_factor(site)
        }
        masks = {n: _event_mask(sample[n]["fn"]) for n in observed}
        parts = {n: _element_mask_of_parts(sample[n]["fn"]) for n in observed}
        # NUTS sums discrete sites out and does not draw them. Where nothing is
        # observed, a discrete site is more likely an observation that was not passed.
        summed = {
            n for n in discrete if observed and latent[n]["fn"].has_enumerate_support
        }
        labels = plate_labels(trace)
        outcomes = {
            n: outcome_of(s["fn"])
            for n, s in sample.items()
            if n in observed or n not in draws
        }
        missing = sorted(latent.keys() - draws.keys() - summed)
        unknown = sorted(draws.keys() - trace.keys())
        if check and (missing or unknown):
            raise ValueError(
                f"the model with these arguments samples {missing}, which were not "
                f"drawn, and lacks {unknown}, which were: give to_datatree the "
                "arguments of mcmc.run (or svi.run), observations included."
            )
        return cls(
            latent=tuple(name for name in latent if name in draws),
            observed=observed,
            factors=tuple(n for n, s in sample.items() if is_factor(s)),
            masks={n: m for n, m in masks.items() if m is not None and not m.all()},
            element_masks={n: m for n, m in parts.items() if m is not None},
            deterministic=names_of_type(trace, "deterministic"),
            trained=names_of_type(trace, "param", "mutable"),
            has_discrete_latent=bool(discrete),
            outcomes={n: o for n, o in outcomes.items() if o is not None},
            discrete=UndrawnDiscrete.find(summed - draws.keys(), trace, call.run),
            plates={
                name: plate_axes(name, trace, labels)
                for name, site in trace.items()
                if site["type"] in ("sample", "deterministic")
            },
            event_dims={name: s["fn"].event_dim for name, s in sample.items()},
            parameters={
                n: s["parameter"] for n, s in trace.items() if s.get("parameter")
            },
            supports={
                name: support
                for name, site in latent.items()
                if site.get("parameter")
                and (support := support_name(site["fn"].support)) is not None
            },
            variables=frozenset(
                variable_name(n) for n, s in trace.items() if s["type"] != "plate"
            ).union(DRAWS),
        )

    def axis_names(
        self, name: str, ndim: int, taken: Collection[str] = ()
    ) -> list[str]:
        """Names for the `ndim` axes of a site: those of its plates, or ArviZ's default.

        Args:
            name: The site.
            ndim: The number of its axes.
            taken: More names that no axis may have.
        """
        from_right = list(self.plates.get(name, ()))
        event = self.event_dims.get(name, 0)
        if ndim == len(from_right) - event:
            from_right = from_right[event:]  # a log density has no event axes
        names = [*reversed(from_right)]
        names = [None] * (ndim - len(names)) + names[len(names) - ndim :]
        default = [f"{variable_name(name)}_dim_{axis}" for axis in range(ndim)]
        parameter = self.parameters.get(name)
        if parameter is not None and len(parameter.shape) <= ndim:
            own = parameter_axes(name, parameter, self.parameters)
            default[ndim - len(own) :] = [
                given or other
                for given, other in zip(own, default[ndim - len(own) :], strict=True)
            ]
        chosen = [
            plate if plate is not None else other
            for plate, other in zip(names, default, strict=True)
        ]
        return [free_axis(axis, self.variables | set(taken)) for axis in chosen]

    def is_trained(self, name: str) -> bool:
        """Whether a trained value belongs to the model, not to its guide."""
        return name in self.trained or name.startswith(
            tuple(f"{site}." for site in self.trained)
        )

    def axes_off_plates(self, name: str) -> tuple[int, ...]:
        """The axes of a site's log density that are on no plate."""
        batch = self.plates.get(name, ())[self.event_dims.get(name, 0) :]
        return tuple(-1 - axis for axis, plate in enumerate(batch) if plate is None)

    def plates_of(self, name: str) -> list[str]:
        """The names of the plates that a site is on, in the order of its axes."""
        plates = (plate for plate in reversed(self.plates.get(name, ())) if plate)
        return [free_axis(plate, self.variables) for plate in plates]

    def variable_attrs(self, name: str) -> dict[str, Any]:
        """The attributes of a site's variable: which parameter it is, which layer."""
        about: dict[str, Any] = {}
        parameter = self.parameters.get(name)
        if parameter is not None:
            about["parameter"] = ".".join(str(key) for key in parameter.path)
            about["role"] = parameter.role
            if parameter.tied:
                about["tied"] = json.dumps(parameter.tied)
            indices = [key for key in parameter.path if isinstance(key, int)]
            if indices:
                about["layer"] = indices[0]
        if name in self.supports:
            about["support"] = self.supports[name]
        if name in self.deterministic:
            about["deterministic"] = 1
        if variable_name(name) != name:
            about["numpyro_name"] = name
        return about


def outcome_attrs(outcome: Outcome | None) -> dict[str, Any]:
    """The attributes that say how a site's values are to be judged."""
    if outcome is None:
        return {}
    about: dict[str, Any] = {"outcome": outcome.kind}
    if outcome.num_classes is not None:
        about |= {
            "num_classes": outcome.num_classes,
            "ordered": int(outcome.is_ordered),
        }
    return about | ({"value_ndim": outcome.ndim} if outcome.ndim else {})


def names_of_type(trace: Mapping[str, Any], *types: str) -> tuple[str, ...]:
    """The names of the sites of some types, one type after the other."""
    return tuple(n for kind in types for n, s in trace.items() if s["type"] == kind)


def _element_mask(fn: Any) -> np.ndarray | None:
    """The mask of a distribution in the shape of its values; None where it has none.

    A mask of a batch holds for whole events, one below ``to_event`` for their elements.
    """
    match fn:
        case MaskedDistribution():
            own = np.broadcast_to(mask_of_distribution(fn), fn.batch_shape)
            own = own.reshape(own.shape + (1,) * len(fn.event_shape))
            below = _element_mask(fn.base_dist)
            own = np.broadcast_to(own, fn.shape())
            return own if below is None else own & below
        case Independent():
            return _element_mask(fn.base_dist)
        case ExpandedDistribution():
            below = _element_mask(fn.base_dist)
            return None if below is None else np.broadcast_to(below, fn.shape())
        case _:
            return None


def _event_mask(fn: Any) -> np.ndarray | None:
    """The mask of a distribution in its batch shape; None where it has none.

    A partly observed event has a density, so it counts as observed.
    """
    elements = _element_mask(fn)
    return None if elements is None else np.asarray(elements.any(axis=_event_axes(fn)))


def _element_mask_of_parts(fn: Any) -> np.ndarray | None:
    """The mask of single values where some event is partly observed; else None."""
    elements = _element_mask(fn)
    if elements is None:
        return None
    some = elements.any(axis=_event_axes(fn), keepdims=True)
    return None if np.array_equal(elements, some & np.ones_like(elements)) else elements


def _event_axes(fn: Any) -> tuple[int, ...]:
    return tuple(range(-len(fn.event_shape), 0))
