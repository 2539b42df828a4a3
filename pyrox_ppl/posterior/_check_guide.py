"""The check of a guide: the Pareto shape of its importance weights."""

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._diagnosis import Check

# Vehtari, Simpson, Gelman, Yao and Gabry (JMLR 2024), section 3.2.4. A Pareto
# distribution is fitted to the largest fifth of the weights, five of them at least.
PARETO_K, FEWEST_WEIGHTS = 0.7, 25
# The log weights add up over dimensions, so k grows with their number at the same
# misfit of each: for normal posteriors whose scales a guide has a fifth too small, k of
# 1,000 weights is 0.34 in one dimension, 0.6 in 30 and 1 in 100, while no marginal has
# changed. Yao et al. (ICML 2018) warn that k judges the joint distribution, and Dhaka
# et al. (NeurIPS 2021) measure its growth.
DECISIVE_DIMENSIONS = 30


def num_random(posterior: xr.Dataset) -> int:
    """How many latent numbers differ from draw to draw."""
    count = 0
    for name in _stats.names(posterior):
        if not posterior[name].attrs.get("deterministic"):
            values = _stats.by_draw(posterior, name)
            count += int((values != values[:1, :1]).any(axis=(0, 1)).sum())
    return count


def check_guide(stats: xr.Dataset, dimensions: int) -> tuple[Check, float | None]:
    """The Pareto shape of a guide's importance weights.

    Args:
        stats: The statistics of the draws.
        dimensions: Over how many numbers the weights are.
    """
    is_known = "log_weight" in stats
    weights = stats["log_weight"].values if is_known else np.zeros(0)
    weights = weights.astype(np.float64).reshape(-1)
    broken = ~np.isfinite(weights)
    if broken.any():
        return (
            Check(
                "guide's PSIS k",
                False,
                f"the log importance weight is NaN or infinite for {broken.sum()} of "
                f"{weights.size} draws, where the log density of the model or of the "
                "guide is not a number",
                "a guide whose draws are all in the support of the model, or a smaller "
                "learning rate.",
            ),
            float("inf"),
        )
    if weights.size < FEWEST_WEIGHTS:
        finding, advice = (
            f"{weights.size} draws are too few to fit the tail of their weights",
            f"to_datatree(..., num_samples={FEWEST_WEIGHTS}), or more.",
        )
        if not is_known:
            finding, advice = (
                "there are no importance weights of this guide",
                "to_datatree(..., log_weight=True), and a guide that can compute the "
                "density of its draws (not AutoBNAFNormal).",
            )
        return Check("guide's PSIS k", None, finding, advice), None
    # A guide that equals the posterior gives all draws one weight: there is no tail.
    exact = np.ptp(weights) < 1e-9
    k = 0.0 if exact else _stats.pareto_k(weights - weights.max())
    # S draws cannot support an estimate of a mean where k > 1 - 1 / log10(S).
    limit = min(1 - 1 / np.log10(weights.size), PARETO_K)
    if not k <= limit and dimensions > DECISIVE_DIMENSIONS:
        return (
            Check(
                "guide's PSIS k",
                None,
                f"{k:.2f}; over {dimensions:,} dimensions k is high for good and for "
                "bad guides, so only a k below "
                f"{limit:.2f} would say something",
                "`calibration` of held-out rows, which judges the predictions "
                "themselves; a richer guide (AutoLowRankMultivariateNormal) or NUTS "
                "where it is poor.",
                remark="held-out rows decide (`calibration`), not the guide's PSIS k",
            ),
            k,
        )
    return (
        Check(
            "guide's PSIS k",
            bool(k <= limit),
            f"{k:.2f} (should be at most {limit:.2f})",
            "more steps, a richer guide (AutoMultivariateNormal, "
            "AutoLowRankMultivariateNormal), or NUTS: the guide misses a part of the "
            "posterior.",
        ),
        k,
    )
