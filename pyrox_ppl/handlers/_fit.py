"""A distribution, made to fit a parameter: its shape, its events, its support."""

from typing import Any

import numpyro.distributions as dist
from jax import lax

from pyrox_ppl._parameter import Parameter


def fit(prior: Any, parameter: Parameter) -> dist.Distribution:
    """Broadcast a distribution to a parameter's shape, all axes made event axes."""
    if not isinstance(prior, dist.Distribution):
        raise TypeError(
            f"the value for {parameter.name!r} must be a NumPyro distribution, got "
            f"{prior!r}."
        )
    split = len(parameter.shape) - prior.event_dim
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
    if prior.support is not None and prior.support.is_discrete:
        raise ValueError(
            f"the distribution for {parameter.name!r}, {type(prior).__name__}, is "
            f"discrete, but the parameter is {parameter.dtype}."
        )
    if prior.batch_shape != batch:
        prior = prior.expand(batch)
    return prior.to_event(len(batch))


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return lax.broadcast_shapes(shape, to) == to
    except ValueError:
        return False
