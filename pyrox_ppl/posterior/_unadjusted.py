"""What can and cannot be said of draws that no acceptance step made exact."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._diagnosis import Check

# Per dimension. MILE's warm-up starts at 0.5 and ends at 0.1; a chain with more than
# one does not follow the dynamics whose draws are the posterior's.
ENERGY_VARIANCE = 1.0


def check_unadjusted(stats: xr.Dataset, attrs: Mapping[Any, Any]) -> list[Check]:
    """The checks of a kernel that accepts every step.

    Args:
        stats: The statistics of the sampler.
        attrs: The attributes of the tree: the kernel, and the number of dimensions.
    """
    kernel = attrs.get("kernel", "the kernel")
    checks = []
    if "diverging" in stats:
        diverging = stats["diverging"]
        checks.append(
            Check(
                "divergences",
                not diverging.any(),
                f"{int(diverging.sum())} of {diverging.size} kept steps{_size(stats)}",
                "a smaller step size, lighter tails of the prior, or a start nearer to "
                "the mode: the chain stays where it is while its steps diverge.",
            )
        )
    if "energy_error" in stats and "dimension" in attrs:
        error = _stats.by_draw(stats, "energy_error").astype(np.float64)
        variance = (error**2).mean(axis=-1) / attrs["dimension"]
        checks.append(
            Check(
                "energy error",
                bool(variance.max() <= ENERGY_VARIANCE),
                f"a variance of at most {variance.max():.2g} per dimension (should be "
                f"at most {ENERGY_VARIANCE:g}; the warm-up aims at 0.1){_size(stats)}",
                "a longer warm-up, a smaller energy_variance, or a smaller step size "
                "if it was given: such steps follow another distribution.",
            )
        )
    measure = "energy_variance" if "energy_error" in stats else "step size"
    checks.append(
        Check(
            "exactness",
            None,
            f"{kernel} accepts every step, so its draws come from a distribution near "
            "the posterior; nothing in them says how near. R-hat and ESS say whether "
            "the chains agree on it, and how well it is known",
            f"the same run with a tenth of the {measure}: what changes was biased. On "
            "a small model, NUTS.",
        )
    )
    return checks


def _size(stats: xr.Dataset) -> str:
    """The step sizes, in words."""
    if "step_size" not in stats:
        return ""
    low, high = (float(f(stats["step_size"])) for f in (np.min, np.max))
    if np.isclose(low, high):
        return f", at the step size {high:.3g}"
    return f", at step sizes from {low:.3g} to {high:.3g}"
