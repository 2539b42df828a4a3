"""draws_from_modules: modules that were trained elsewhere, as draws of a model."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpyro import handlers
from numpyro.distributions import biject_to

from pyrox_ppl._full_data import is_factor
from pyrox_ppl._layer_state import copy_state
from pyrox_ppl._parameter import class_name
from pyrox_ppl.posterior._dataset import make_datasets
from pyrox_ppl.posterior._member_arrays import find_reads, list_members, match_members
from pyrox_ppl.posterior._model_sites import ModelSites
from pyrox_ppl.prediction._trained import arrays_by_path


def draws_from_modules(
    modules: Any,
    *args: Any,
    model: Callable,
    name: str | None = None,
    values: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> xr.DataTree:
    r"""Turn trained modules into draws of a model: the inverse of `modules_from_draws`.

    An ensemble that was trained elsewhere, with any optimiser, comes in as draws::

        draws = px.draws_from_modules(networks, x, y=y, model=model, name="net")
        tree = px.to_datatree(draws, x, y=y, model=model)

    Each module is a member of an ensemble: a chain of one draw.

    **Sites**: named by the rule of :func:`~pyrox_ppl.bind`. A parameter that the model
    samples gives its draw; one that the model learns gives a trained value; a constant
    of the model must be the array that the model holds. Under a non-centred prior
    (:class:`~pyrox_ppl.priors.NonCentered`) the draw is the noise that gives the array,
    :math:`(\theta - \mu) / \sigma`, at the member's own :math:`\mu` and :math:`\sigma`.
    Tied arrays are one site, and must be equal.

    **Shapes**: ``(members, 1, *site)``. Modules bound on a plate (``bind(...,
    plate=...)``) have the axis of the plate on every array; an array without it is
    shared by the plate's members.

    Args:
        modules: A sequence of modules of the class that the model reads; or one module
            whose every array has a leading axis of members. Where the model reads
            several modules, a dictionary of either by the names given to ``bind``.
        *args: The arguments of the model, observations included.
        model: The model.
        name: The root of the module's names: the name given to ``bind``, with the
            prefix of every scope; by default the class name in snake case.
        values: Values of the model's other latent sites (a noise scale, say), and
            trained values of its other ``param`` sites and of its ``mutable`` sites
            (the state of each member's layers), with a leading axis of members on every
            array.
        **kwargs: The keyword arguments of the model.

    Returns:
        A DataTree with the groups ``posterior`` and ``params``, whose ``attrs`` say
        that it is an ensemble. ``to_datatree`` computes the other groups.

    Raises:
        ValueError: If the model reads no module of that name; if a module has other
            parameters or shapes, or differs in anything else (its class, an activation,
            a number); if tied arrays differ; if a constant differs from the model's; if
            a value is outside the support of its prior; or if `values` lacks a latent
            site.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> import numpyro, numpyro.distributions as dist
        >>> linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        >>> def model(x, y=None):
        ...     with px.bayesianize():
        ...         net = px.bind(linear, "net")
        ...     with numpyro.plate("row", len(x)):
        ...         numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.1), obs=y)
        >>> trained = [
        ...     eqx.nn.Linear(1, 1, key=key)
        ...     for key in jax.random.split(jax.random.key(1), 5)
        ... ]
        >>> x = jnp.ones((3, 1))
        >>> y = jnp.zeros(3)
        >>> draws = px.draws_from_modules(trained, x, y=y, model=model, name="net")
        >>> draws.posterior["net.weight"].shape
        (5, 1, 1, 1)
        >>> tree = px.to_datatree(draws, x, y=y, model=model)
        >>> tree.attrs["inference"], dict(tree.posterior_predictive["y"].sizes)
        ('ensemble', {'chain': 5, 'draw': 1, 'row': 3})
    """
    by_root = modules if isinstance(modules, dict) else {name: modules}
    members = {root: list_members(each) for root, each in by_root.items()}
    numbers = {len(each) for each in members.values()}
    if len(numbers) != 1 or 0 in numbers:
        raise ValueError(
            "draws_from_modules needs as many members of every module, and one at "
            f"least, got {[len(each) for each in members.values()]}."
        )
    number = numbers.pop()
    named = {
        class_name(each[0]) if root is None else root: each
        for root, each in members.items()
    }
    own = jax.tree.map(np.asarray, dict(values or {}))
    for site, value in arrays_by_path(own).items():
        if value.shape[:1] != (number,):
            raise ValueError(
                f"values[{site!r}] has shape {value.shape}, and needs a leading axis "
                f"of the {number} members."
            )
    reads = find_reads(model, args, kwargs)
    arrays = match_members(named, reads)

    def sites_of(member: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        put = _PutMember(member)
        seeded = handlers.seed(handlers.substitute(model, substitute_fn=put), 0)
        trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        latent = {
            n: site["value"]
            for n, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
            if not is_factor(site)
        }
        missing = sorted(latent.keys() - put.used)
        if missing:
            raise ValueError(
                f"the model also samples {missing}, which no module holds: pass "
                "observations as arguments of the model, and other values as "
                "values={site: array with a leading axis of members}."
            )
        unused = sorted(member.keys() - put.used - put.parameters)
        if unused:
            raise ValueError(
                f"the model has no latent, param or mutable sites {unused}: it has "
                f"{sorted(put.used)}."
            )
        trained = {
            # A run of the model may change the state of its layers.
            n: site["value"] if site["type"] == "param" else member[n]
            for n, site in trace.items()
            if site["type"] in ("param", "mutable") and n in put.used
        }
        inside = {n: _is_inside(trace[n]["fn"], value) for n, value in latent.items()}
        return latent, arrays_by_path(trained), inside

    stacked = jax.tree.map(jnp.asarray, {**arrays, **own})
    latent, trained, inside = jax.device_get(jax.lax.map(sites_of, stacked))
    _check_inside(inside)
    draws = {n: value[:, None] for n, value in latent.items()}
    datasets = make_datasets(
        {"posterior": draws, "params": trained},
        ModelSites(),
        frozenset(trained),
        is_ensemble=True,
    )
    tree = xr.DataTree.from_dict(datasets)
    kind = "ensemble" if number > 1 else "draws"
    tree.attrs |= {"inference": kind, "members": number}
    return tree


def _is_inside(law: Any, value: jax.Array) -> jax.Array:
    """Whether a value is on the support of its prior, up to rounding."""
    if law.support.is_discrete:
        return jnp.all(law.support(value))
    transform: Any = biject_to(law.support)
    free = transform.inv(value)
    close = jnp.allclose(transform(free), value, rtol=1e-3, atol=1e-5)
    return jnp.all(jnp.isfinite(free)) & close


def _check_inside(inside: Mapping[str, np.ndarray]) -> None:
    """Raise if a member has a value that its prior excludes."""
    for site, each in inside.items():
        if not each.all():
            raise ValueError(
                f"the members {np.flatnonzero(~each).tolist()} have values of "
                f"{site!r} that are not finite, or outside the support of its prior: "
                "give it a prior that allows them, or leave these members out."
            )


class _PutMember:
    """Puts a member's values in place of sites, for ``substitute``."""

    def __init__(self, member: Mapping[str, Any]) -> None:
        self._member = member
        self.used: set[str] = set()
        self.parameters: set[str] = set()

    def __call__(self, site: dict[str, Any]) -> Any:
        if site["type"] not in ("sample", "param", "mutable"):
            return None
        if site.get("is_observed"):
            return None
        name, value = site["name"], None
        parameter = name
        if "loc_scale" in site:  # the noise behind a non-centred parameter
            parameter = name.removesuffix("_decentered")
        if parameter not in self._member:
            return None
        self.used.add(name)
        self.parameters.add(parameter)
        value = self._member[parameter]
        if not eqx.is_array(value):
            return copy_state(value)
        is_sample = site["type"] == "sample"
        own = site["fn"].shape() if is_sample else np.shape(site["args"][0])
        shape = own if is_sample or own else value.shape
        value = _spread_over_plate(value, shape)
        if parameter != name:
            loc, scale = (jnp.broadcast_to(part, shape) for part in site["loc_scale"])
            value = (value - loc) / scale
        return value


def _spread_over_plate(value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A value in the shape of its site, which may have axes of a plate in front."""
    if value.ndim < len(shape) and value.shape[:1] == shape[:1]:
        missing = len(shape) - value.ndim
        value = value.reshape(value.shape[:1] + (1,) * missing + value.shape[1:])
    if value.shape != shape and value.shape != shape[len(shape) - value.ndim :]:
        raise ValueError(
            f"a value of shape {value.shape} cannot be that of a site of shape {shape}."
        )
    return jnp.broadcast_to(value, shape)
