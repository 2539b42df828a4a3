"""Which entries of a site are observed: the masks inside its distribution."""

from typing import Any

import numpy as np
from numpyro.distributions import ExpandedDistribution, Independent, MaskedDistribution

from pyrox_ppl._numpyro import mask_of_distribution


def elements_of(fn: Any) -> np.ndarray | None:
    """The mask of a distribution, of the shape of its values; None where it has none.

    A mask of a batch holds for whole events, one below ``to_event`` for their elements.
    """
    match fn:
        case MaskedDistribution():
            own = np.broadcast_to(mask_of_distribution(fn), fn.batch_shape)
            own = own.reshape(own.shape + (1,) * len(fn.event_shape))
            below = elements_of(fn.base_dist)
            own = np.broadcast_to(own, fn.shape())
            return own if below is None else own & below
        case Independent():
            return elements_of(fn.base_dist)
        case ExpandedDistribution():
            below = elements_of(fn.base_dist)
            return None if below is None else np.broadcast_to(below, fn.shape())
        case _:
            return None


def mask_of(fn: Any) -> np.ndarray | None:
    """The mask of a distribution, of its batch shape; None where it has none.

    An event of which anything is observed has a density, and counts as observed.
    """
    elements = elements_of(fn)
    return None if elements is None else np.asarray(elements.any(axis=_events(fn)))


def mask_inside(fn: Any) -> np.ndarray | None:
    """The mask of the values, where one hides a part of an event; else None."""
    elements = elements_of(fn)
    if elements is None:
        return None
    some = elements.any(axis=_events(fn), keepdims=True)
    return None if np.array_equal(elements, some & np.ones_like(elements)) else elements


def keep_observed(array: np.ndarray, mask: np.ndarray, leading: int) -> np.ndarray:
    """Flatten the masked axes, which follow `leading` ones, to the observed entries."""
    if mask.ndim == 0:  # a scalar is one entry, or none
        return np.repeat(np.expand_dims(array, leading), int(mask), axis=leading)
    return array[(slice(None),) * leading + np.nonzero(mask)]


def _events(fn: Any) -> tuple[int, ...]:
    return tuple(range(-len(fn.event_shape), 0))
