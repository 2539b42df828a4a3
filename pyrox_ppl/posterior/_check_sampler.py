"""The checks of a sampler that follows the energy: divergences, E-BFMI, tree depth."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._diagnosis import Check

# Betancourt (2016).
BFMI = 0.3
# A largest tree takes many times the steps of an ordinary one, so even a few percent of
# them are most of a run's cost. Stan warns of a single one.
LARGEST_TREES = 0.01


def check_sampler(
    stats: xr.Dataset, attrs: Mapping[Any, Any]
) -> tuple[list[Check], np.ndarray | None]:
    """Divergences, the depth of NUTS's trees, and the energy fraction.

    Args:
        stats: The statistics of the sampler.
        attrs: The attributes of the tree, which know the largest depth.
    """
    checks = []
    if "diverging" in stats:
        diverging = int(stats["diverging"].sum())
        total = stats["diverging"].size
        checks.append(
            Check(
                "divergences",
                diverging == 0,
                f"{diverging} of {total} draws",
                "a higher target_accept_prob (0.95, then 0.99), a smaller prior_std, "
                "or a reparameterisation of scales "
                "(`numpyro.infer.reparam.LocScaleReparam`): the sampler missed a "
                "region of strong curvature.",
            )
        )
    else:
        checks.append(
            Check(
                "divergences",
                None,
                "whether draws diverged was not collected",
                'mcmc.run(..., extra_fields=("diverging",)), if the kernel is HMC.',
            )
        )
    if "max_tree_depth" in attrs:
        checks.append(_check_depth(stats, int(attrs["max_tree_depth"])))
    if "energy" not in stats:
        checks.append(
            Check(
                "E-BFMI",
                None,
                "the energy was not collected",
                'mcmc.run(..., extra_fields=("energy", "potential_energy", "num_steps"'
                ', "accept_prob")).',
            )
        )
        return checks, None
    energy = _stats.by_draw(stats, "energy").astype(np.float64)
    # The fraction is NaN, and fails, where the energy is NaN or constant.
    with np.errstate(invalid="ignore", divide="ignore"):
        bfmi = _stats.bfmi(energy)
    checks.append(
        Check(
            "E-BFMI",
            bool(bfmi.min() >= BFMI),
            f"at least {bfmi.min():.2f} (should be at least {BFMI})",
            "a reparameterisation, or lighter tails of the prior: the energy moves too "
            "little from draw to draw.",
        )
    )
    return checks, bfmi


def _check_depth(stats: xr.Dataset, largest: int) -> Check:
    """How often NUTS stopped because its tree was at the largest depth.

    Such a trajectory has taken all of the tree's steps; one that turns or diverges
    inside its last subtree has taken fewer.
    """
    name = "tree depth"
    if "n_steps" not in stats:
        return Check(
            name,
            None,
            "the steps of a trajectory were not collected",
            'mcmc.run(..., extra_fields=("num_steps",)).',
        )
    steps = 2**largest - 1
    share = float((stats["n_steps"] >= steps).mean())
    finding = (
        f"{100 * share:.3g} % of the trajectories stopped at the largest, {steps:,} "
        f"step{'s' if steps > 1 else ''}"
    )
    if share <= LARGEST_TREES:
        return Check(name, True, finding)
    # The draws keep their distribution, so this fails nothing: R-hat and ESS say
    # whether the shorter moves were enough.
    return Check(
        name,
        None,
        finding,
        'standardised data, FlatNUTS(model, adaptation="low_rank") for correlated '
        "parameters, or a larger max_tree_depth: a trajectory that is cut short moves "
        "less far than its steps cost.",
        remark="trajectories at the largest depth make the draws slow, not wrong",
    )
