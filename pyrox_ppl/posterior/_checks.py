"""The single checks of a posterior: what is fine, and what to try where it is not."""

from typing import Any

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._functions import Functions
from pyrox_ppl.posterior.diagnosis import Check

# Vehtari, Gelman, Simpson, Carpenter and Buerkner (Bayesian Analysis 2021) for R-hat
# and the ESS a chain; Betancourt (2016) for the energy fraction.
RHAT, ESS_PER_CHAIN, BFMI = 1.01, 100, 0.3
# Vehtari, Simpson, Gelman, Yao and Gabry (JMLR 2024), section 3.2.4.
PARETO_K = 0.7


def of_functions(functions: Functions, chains: int) -> list[Check]:
    """R-hat, effective sample sizes and Monte Carlo error of functions."""
    probes = functions.rhat.size
    moving = functions.std > 0
    if not moving.any():
        return [
            Check(
                "functions",
                False,
                f"{functions.what} do not change from draw to draw at {probes} probes",
                "a module that the draws are of, and inputs that its values depend on.",
            )
        ]
    worst = float(np.nanmax(functions.rhat[moving]))
    bulk = float(np.nanmin(functions.ess_bulk[moving]))
    tail = float(np.nanmin(functions.ess_tail[moving]))
    error = float(np.nanmax(functions.mcse[moving] / functions.std[moving]))
    enough = ESS_PER_CHAIN * chains
    where = f"of {functions.what} at {probes} probes"
    return [
        Check(
            "R-hat",
            worst <= RHAT,
            f"at most {worst:.3f} {where} (should be at most {RHAT})"
            + ("; one chain can only be compared with itself" if chains == 1 else ""),
            "the chains disagree on the function, not just on the weights: a longer "
            "warmup, more draws, chains from one good start "
            "(`init_to_value`), or a prior that leaves fewer modes.",
        ),
        Check(
            "ESS",
            min(bulk, tail) >= enough,
            f"bulk at least {bulk:.0f}, tail at least {tail:.0f} draws {where} (should "
            f"be at least {enough})",
            "more draws, or a longer warmup for a better step size and mass matrix.",
        ),
        Check(
            "MCSE",
            error <= 0.1,
            f"at most {100 * error:.1f} % of the standard deviation {where} (should be "
            "at most 10 %)",
            "more draws.",
        ),
    ]


def of_sampler(stats: xr.Dataset) -> tuple[list[Check], np.ndarray | None]:
    """Divergences and the energy fraction."""
    checks = []
    if "diverging" in stats:
        diverging = int(stats["diverging"].sum())
        total = stats["diverging"].size
        checks.append(
            Check(
                "divergences",
                diverging == 0,
                f"{diverging} of {total} draws",
                "a higher target_accept_prob (0.95), a smaller prior_std, or a "
                "reparameterisation of scales (`numpyro.infer.reparam.LocScaleReparam`"
                "): the sampler missed a region of strong curvature.",
            )
        )
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
    bfmi = _stats.bfmi(_stats.by_draw(stats, "energy").astype(np.float64))
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


def of_loo(tree: xr.DataTree) -> tuple[list[Check], dict[str, Any]]:
    """PSIS-LOO of each observed site, with its Pareto k."""
    checks, results = [], {}
    for name in _stats.names(_stats.group(tree, "log_likelihood")):
        try:
            result = _stats.loo(tree, name)
        except ValueError as error:  # draws that do not move have no tail to fit
            checks.append(
                Check(
                    f"LOO of {name}",
                    False,
                    f"ArviZ cannot compute it: {error}",
                    "draws that move.",
                    of_draws=False,
                )
            )
            continue
        results[name] = result
        k = np.asarray(result.pareto_k).ravel()
        high = int((k > result.good_k).sum())
        checks.append(
            Check(
                f"LOO of {name}",
                high == 0,
                f"ELPD {result.elpd:.1f} ± {result.se:.1f} nats, p {result.p:.1f}; "
                f"Pareto k above {result.good_k:.2f} for {high} of {k.size} "
                "observations",
                "the estimate rests on few draws where an observation weighs much: a "
                "likelihood with heavier tails (StudentT), more draws, or K-fold "
                "cross-validation. It says nothing against the draws themselves.",
                of_draws=False,
            )
        )
    return checks, results


def of_guide(stats: xr.Dataset) -> tuple[Check, float | None]:
    """The Pareto shape of a guide's importance weights."""
    if "log_weight" not in stats:
        return (
            Check(
                "guide's PSIS k",
                None,
                "there are no importance weights of this guide",
                "to_datatree(..., log_weight=True), and a guide whose density can be "
                "had again (not AutoBNAFNormal).",
            ),
            None,
        )
    weights = stats["log_weight"].values.astype(np.float64).reshape(-1)
    # Where the guide is the posterior there is no tail to fit.
    exact = np.ptp(weights) < 1e-9
    k = 0.0 if exact else _stats.pareto_k(weights - weights.max())
    limit = min(1 - 1 / np.log10(weights.size), PARETO_K)
    return (
        Check(
            "guide's PSIS k",
            bool(k <= limit),
            f"{k:.2f} (should be at most {limit:.2f})",
            "more steps, a richer guide (AutoMultivariateNormal, "
            "AutoLowRankMultivariateNormal), or NUTS: the guide misses a part of the "
            "posterior. In many dimensions k is high although means and predictions "
            "may be good; hold them against data (`calibration`).",
        ),
        k,
    )


def of_losses(loss: np.ndarray) -> Check:
    """Whether the ELBO has stopped rising."""
    if not np.isfinite(loss).all():
        first = int(np.flatnonzero(~np.isfinite(loss))[0])
        return Check(
            "ELBO",
            False,
            f"not finite from step {first} on",
            "a smaller learning rate, or a smaller init_scale of the guide.",
        )
    if loss.size < 20:
        return Check("ELBO", None, f"only {loss.size} steps", "more steps.")
    fifth = loss.size // 5
    before, last = loss[-2 * fifth : -fifth], loss[-fifth:]
    fall = float(before.mean() - last.mean())
    noise = float(np.sqrt((before.var() + last.var()) / fifth))
    # A nat is what an odds ratio of e is on the scale of evidence: less is no matter.
    return Check(
        "ELBO",
        bool(fall <= max(1.0, 3 * noise)),
        f"{-last.mean():.1f} nats over the last fifth of {loss.size} steps, "
        f"{fall:+.2g} ± {noise:.2g} on the fifth before",
        "more steps: the loss still falls.",
    )
