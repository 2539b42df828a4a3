"""Which entries of a site are observed: the masks inside its distribution."""

from typing import Any

import numpy as np
from numpyro.distributions import ExpandedDistribution, Independent, MaskedDistribution


def mask_of(fn: Any) -> np.ndarray | None:
    """The mask of a distribution, of its batch shape; None where it has none.

    An event of which anything is observed counts as observed.
    """
    match fn:
        case MaskedDistribution():
            own = np.broadcast_to(np.asarray(fn._mask), fn.batch_shape)
            below = mask_of(fn.base_dist)
            return own if below is None else own & below
        case Independent():
            below = mask_of(fn.base_dist)
            if below is None:
                return None
            axes = tuple(range(-fn.reinterpreted_batch_ndims, 0))
            return below.any(axis=axes) if axes else below
        case ExpandedDistribution():
            below = mask_of(fn.base_dist)
            return None if below is None else np.broadcast_to(below, fn.batch_shape)
        case _:
            return None


def keep_observed(array: np.ndarray, mask: np.ndarray, leading: int) -> np.ndarray:
    """Flatten the masked axes, which follow `leading` ones, to the observed entries."""
    return array[(slice(None),) * leading + np.nonzero(mask)]
