"""How far the members of an ensemble differ as functions, and whether two are one."""

import numpy as np

from pyrox_ppl.posterior._diagnosis import Check
from pyrox_ppl.posterior._functions import FunctionStatistics

# Two members are one function if their distance is below this share of the spread.
_SAME = 1e-3


def check_members(functions: FunctionStatistics) -> list[Check]:
    """How far the members of an ensemble differ in function space."""
    distances, spread = functions.distances, functions.spread_of_members
    if distances is None or spread is None or functions.not_finite.any():
        return []
    pairs = np.array(np.triu_indices(len(distances), 1))
    apart = distances[tuple(pairs)]
    size = float(np.sqrt(np.mean(np.square(functions.std))))
    share = min(1.0, (spread / size) ** 2) if size > 0 else 0.0
    finding = (
        f"{functions.what} have a standard deviation of {spread:.3g} between "
        f"{len(distances)} members, {100 * share:.3g} % of their variance over all "
        f"draws (root mean square over {functions.std.size} probes; the closest two "
        f"members are {apart.min():.3g} apart, the farthest {apart.max():.3g})"
    )
    close = pairs[:, apart <= _SAME * max(apart.max(), size)]
    if not close.size:
        return [Check("members", True, finding)]
    named = ", ".join(f"{a} and {b}" for a, b in close.T[:3])
    more = f", and {close.shape[1] - 3} more pairs" if close.shape[1] > 3 else ""
    return [
        Check(
            "members",
            False,
            f"{finding}; the same function: members {named}{more}",
            "other starts (make=), or fewer members. If the loss has a single minimum, "
            "every member of a point guide is at it, and the ensemble says nothing "
            "about uncertainty: use AutoNormal or NUTS.",
        )
    ]
