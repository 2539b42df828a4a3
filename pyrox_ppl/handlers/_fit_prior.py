"""fit_prior: gives a distribution the shape and the event axes of a parameter."""

from typing import Any

import numpyro.distributions as dist
from jax import lax

from pyrox_ppl._parameter import Parameter


def fit_prior(prior: Any, parameter: Parameter, plate: Any = None) -> dist.Distribution:
    """Broadcast a distribution to a parameter's shape, and make all axes event axes.

    With a `plate` its batch shape may begin with the plate's size: one distribution per
    member.
    """
    if not isinstance(prior, dist.Distribution):
        raise TypeError(
            f"the value for {parameter.name!r} must be a NumPyro distribution, got "
            f"{prior!r}."
        )
    split = len(parameter.shape) - prior.event_dim
    if plate is not None and prior.shape() == (
        plate.subsample_size,
        *parameter.shape,
    ):
        _check_members(prior, parameter, plate)
        return prior.to_event(split)
    batch, event = parameter.shape[: max(split, 0)], parameter.shape[max(split, 0) :]
    if (
        split < 0
        or event != prior.event_shape
        or not _broadcasts(prior.batch_shape, batch)
    ):
        raise ValueError(
            f"the distribution for {parameter.name!r} has batch shape "
            f"{prior.batch_shape} and event shape {prior.event_shape}, which does not "
            f"broadcast to the parameter's shape {parameter.shape}."
        )
    _check_continuous(prior, parameter)
    if prior.batch_shape != batch:
        prior = prior.expand(batch)
    return prior.to_event(len(batch))


def _check_members(prior: dist.Distribution, parameter: Parameter, plate: Any) -> None:
    """Raise if a distribution with one entry per member does not fit its plate."""
    if prior.event_dim > len(parameter.shape):
        raise ValueError(
            f"the distribution for {parameter.name!r} has event shape "
            f"{prior.event_shape}: the members of plate {plate.name!r} are "
            "independent, so their axis must be a batch axis."
        )
    if plate.dim != -1:
        raise ValueError(
            f"the distribution for {parameter.name!r} has one entry per member of "
            f"plate {plate.name!r}, which is at dim={plate.dim}: put that plate at "
            "dim=-1."
        )
    _check_continuous(prior, parameter)


def _check_continuous(prior: dist.Distribution, parameter: Parameter) -> None:
    if prior.support is not None and prior.support.is_discrete:
        raise ValueError(
            f"the distribution for {parameter.name!r}, {type(prior).__name__}, is "
            f"discrete, but the parameter is {parameter.dtype}: use a continuous one."
        )


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return lax.broadcast_shapes(shape, to) == to
    except ValueError:
        return False
