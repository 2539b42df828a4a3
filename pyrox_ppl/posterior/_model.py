"""What a model says of its data: observations, masks, plates, parameters, constants."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Collection
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pyrox_ppl._parameter import Parameter
from pyrox_ppl.posterior._at_draw import of_type, trace_at
from pyrox_ppl.posterior._axes import (
    DRAWS,
    free,
    parameter_axes,
    plate_axes,
    plate_labels,
    safe,
)
from pyrox_ppl.posterior._marginal import Discrete
from pyrox_ppl.posterior._mask import mask_inside, mask_of
from pyrox_ppl.prediction._draw_shapes import check_draws
from pyrox_ppl.prediction._full_data import is_factor


@dataclasses.dataclass(frozen=True)
class ModelSites:
    """The sites of one run of a model with its draws in place.

    Attributes:
        latent: Names of the sample sites that were drawn.
        observed: The observations by site, ``factor`` left out.
        factors: Names of the ``factor`` sites.
        masks: For the observed sites of which not everything is observed, which
            entries are.
        inside: The same of single values, for the sites where a part of an event is
            observed.
        deterministic: Names of the deterministic sites.
        trained: Names of the ``param`` and ``mutable`` sites.
        has_discrete_latent: Whether a latent site is discrete.
        discrete: Those that were summed out, and not drawn.
        plates: For every site the names of its axes from the right, the event axes
            (named None) first.
        event_dims: For every sample site the number of its event axes.
        parameters: The parameters of modules among the sites.
        taken: Names that no axis may have: the variables'.
    """

    latent: tuple[str, ...]
    observed: dict[str, Any]
    factors: tuple[str, ...]
    masks: dict[str, np.ndarray]
    inside: dict[str, np.ndarray]
    deterministic: tuple[str, ...]
    trained: tuple[str, ...]
    has_discrete_latent: bool
    discrete: Discrete
    plates: dict[str, tuple[str | None, ...]]
    event_dims: dict[str, int]
    parameters: dict[str, Parameter]
    taken: frozenset[str]

    @classmethod
    def of(
        cls,
        model: Callable,
        draws: dict[str, Any],
        args: tuple,
        kwargs: dict[str, Any],
        *,
        check: bool = True,
    ) -> Self:
        """Run the model once, at the first draw.

        Args:
            model: The model on all of its data, with the trained parameters.
            draws: Site name -> array with two sample axes.
            args: The model's arguments.
            kwargs: Its keyword arguments.
            check: Whether the latent sites must be those that were drawn.

        Raises:
            ValueError: If the sample sites of the model are not those that were drawn,
                or have another shape.
        """
        # On the device, for a scan takes its own element of each.
        first = {name: jnp.asarray(value[0, 0]) for name, value in draws.items()}
        trace = trace_at(model, first, args, kwargs)
        sample = {n: s for n, s in trace.items() if s["type"] == "sample"}
        latent = {n: s for n, s in sample.items() if not s["is_observed"]}
        check_draws(latent, draws)
        discrete = {n for n, s in latent.items() if s["fn"].support.is_discrete}
        observed = {
            name: site["value"]
            for name, site in sample.items()
            if site["is_observed"] and not is_factor(site)
        }
        masks = {name: mask_of(sample[name]["fn"]) for name in observed}
        inside = {name: mask_inside(sample[name]["fn"]) for name in observed}
        # NUTS sums a discrete site out and draws none of it; where nothing is observed,
        # it is rather an observation that was forgotten.
        summed = {
            n for n in discrete if observed and latent[n]["fn"].has_enumerate_support
        }
        labels = plate_labels(trace)
        missing = sorted(latent.keys() - draws.keys() - summed)
        unknown = sorted(draws.keys() - trace.keys())
        if check and (missing or unknown):
            raise ValueError(
                f"the model with these arguments samples {missing}, which were not "
                f"drawn, and lacks {unknown}, which were: give to_datatree the "
                "arguments that mcmc.run was given (or svi.run), observations included."
            )
        return cls(
            latent=tuple(name for name in latent if name in draws),
            observed=observed,
            factors=tuple(n for n, s in sample.items() if is_factor(s)),
            masks={n: m for n, m in masks.items() if m is not None and not m.all()},
            inside={n: m for n, m in inside.items() if m is not None},
            deterministic=of_type(trace, "deterministic"),
            trained=of_type(trace, "param") + of_type(trace, "mutable"),
            has_discrete_latent=bool(discrete),
            discrete=Discrete.of(summed - draws.keys(), trace, model, args, kwargs),
            plates={
                name: plate_axes(name, trace, labels)
                for name, site in trace.items()
                if site["type"] in ("sample", "deterministic")
            },
            event_dims={name: s["fn"].event_dim for name, s in sample.items()},
            parameters={
                n: s["parameter"] for n, s in trace.items() if s.get("parameter")
            },
            taken=frozenset(
                safe(n) for n, s in trace.items() if s["type"] != "plate"
            ).union(DRAWS),
        )

    def dims(self, name: str, ndim: int, taken: Collection[str] = ()) -> list[str]:
        """Names for the `ndim` axes of a site: its plates', or ArviZ's default.

        Args:
            name: The site.
            ndim: The number of its axes.
            taken: More names that no axis may have.
        """
        from_right = list(self.plates.get(name, ()))
        event = self.event_dims.get(name, 0)
        if ndim == len(from_right) - event:
            from_right = from_right[event:]  # a log density: the event is summed over
        names = [*reversed(from_right)]
        names = [None] * (ndim - len(names)) + names[len(names) - ndim :]
        default = [f"{safe(name)}_dim_{axis}" for axis in range(ndim)]
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
        return [free(axis, self.taken | set(taken)) for axis in chosen]

    def is_trained(self, name: str) -> bool:
        """Whether a trained value is one of the model, and not of its guide."""
        return name in self.trained or name.startswith(
            tuple(f"{site}." for site in self.trained)
        )

    def on_no_plate(self, name: str) -> tuple[int, ...]:
        """The axes of a site's log density that are on no plate."""
        batch = self.plates.get(name, ())[self.event_dims.get(name, 0) :]
        return tuple(-1 - axis for axis, plate in enumerate(batch) if plate is None)

    def plates_of(self, name: str) -> list[str]:
        """The names of the plates that a site is on, in the order of its axes."""
        plates = (plate for plate in reversed(self.plates.get(name, ())) if plate)
        return [free(plate, self.taken) for plate in plates]

    def attrs(self, name: str) -> dict[str, Any]:
        """What a variable says of the site: the parameter that it is, its layer."""
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
        if name in self.deterministic:
            about["deterministic"] = 1
        if safe(name) != name:
            about["numpyro_name"] = name
        return about


def check_arguments(model: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    """Refuse arguments with which a model cannot be called.

    Raises:
        ValueError: If one is missing, or one too many.
    """
    try:
        inspect.signature(model).bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"the model cannot be called with these arguments: {error}. Give the "
            "arguments that mcmc.run was given (or svi.run), observations included: "
            "to_datatree(mcmc, *args, **kwargs); those of `predictions` are the same "
            "without observations."
        ) from error


def constant_data(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    observed: dict[str, Any],
) -> dict[str, np.ndarray]:
    """The arrays among a model's arguments that are no observations, by name.

    Arrays in a tuple or a dict are named by their path, joined by dots; the parameters
    of a module are no data.
    """
    bound = inspect.signature(model).bind(*args, **kwargs)
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        dict(bound.arguments), is_leaf=lambda node: isinstance(node, eqx.Module)
    )
    # An observation is known by being the array itself; one that the model made from
    # its argument (by jnp.asarray, say) by its values.
    given = [leaf for _, leaf in leaves]
    remade = [
        np.asarray(data)
        for data in observed.values()
        if not any(leaf is data for leaf in given)
    ]
    constants = {}
    for path, leaf in leaves:
        number = isinstance(leaf, int | float) and not isinstance(leaf, bool)
        if not (number or eqx.is_array(leaf) or isinstance(leaf, np.ndarray)):
            continue
        is_observed = any(leaf is data for data in observed.values())
        if not is_observed and not any(_equal(np.asarray(leaf), d) for d in remade):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            constants[name] = np.asarray(leaf)
    return constants


def _equal(value: np.ndarray, observation: np.ndarray) -> bool:
    return value.shape == observation.shape and np.array_equal(
        value, observation, equal_nan=value.dtype.kind == "f"
    )
