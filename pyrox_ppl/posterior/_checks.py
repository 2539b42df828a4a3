"""The single checks of a posterior: what is fine, and what to try where it is not."""

import dataclasses
from typing import Any

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._diagnosis import Check
from pyrox_ppl.posterior._functions import FunctionStatistics
from pyrox_ppl.posterior._losses import check_losses as check_losses

# Vehtari, Gelman, Simpson, Carpenter and Buerkner (Bayesian Analysis 2021) for R-hat
# and the ESS per chain; Betancourt (2016) for the energy fraction.
RHAT, ESS_PER_CHAIN, BFMI = 1.01, 100, 0.3
# Vehtari, Simpson, Gelman, Yao and Gabry (JMLR 2024), section 3.2.4. A Pareto
# distribution is fitted to the largest fifth of the weights, five of them at least.
PARETO_K, FEWEST_WEIGHTS = 0.7, 25


def check_finite_draws(tree: xr.DataTree) -> list[Check]:
    """Whether the draws and their log densities are finite."""
    broken = {}
    for group, names in (("posterior", None), ("sample_stats", ("lp", "energy"))):
        dataset = _stats.group(tree, group)
        for name in _stats.names(dataset) if names is None else names:
            if name in dataset and dataset[name].dtype.kind in "fc":
                share = 1.0 - float(np.isfinite(dataset[name].values).mean())
                if share > 0:
                    broken[name] = share
    if not broken:
        return []
    listed = ", ".join(f"{name} ({_percent(s)})" for name, s in broken.items())
    return [
        Check(
            "finite draws",
            False,
            f"NaN or infinity among the values of {listed}",
            "a smaller step or learning rate, or a prior without extreme values: the "
            "run broke down. `jax.config.update('jax_debug_nans', True)` shows where "
            "it begins.",
        )
    ]


def check_values(functions: FunctionStatistics) -> list[Check]:
    """Whether functions are finite and differ between draws."""
    probes, broken = functions.std.size, functions.not_finite > 0
    if broken.any():
        return [
            Check(
                "functions",
                False,
                f"{functions.what} are NaN or infinite at {broken.sum()} of {probes} "
                f"probes, in up to {_percent(functions.not_finite.max())} of the draws",
                "to find the operation at these draws and inputs: the logarithm or "
                "root of a number that is not positive, a division by zero, an "
                "overflow, or weights that are NaN themselves.",
            )
        ]
    if not (functions.std > 0).any():
        return [
            Check(
                "functions",
                False,
                f"{functions.what} do not change from draw to draw at {probes} probes",
                "the module of these draws, and inputs that its values depend on.",
            )
        ]
    return []


def check_convergence(
    functions: FunctionStatistics, chains: int, origin_is_known: bool
) -> list[Check]:
    """R-hat, effective sample sizes and Monte Carlo error of functions."""
    moving = functions.std > 0
    if not moving.any():
        return []
    # max and min return NaN where there is one, and a comparison with NaN fails.
    worst = float(functions.rhat[moving].max())
    bulk = float(functions.ess_bulk[moving].min())
    tail = float(functions.ess_tail[moving].min())
    error = float((functions.mcse[moving] / functions.std[moving]).max())
    enough = ESS_PER_CHAIN * chains
    constant = int((functions.std == 0).sum())
    where = f"of {functions.what} at {moving.sum()} probes"
    if constant:
        where += f" ({constant} others do not change from draw to draw)"
    given_chains = "" if origin_is_known else ", if these are Markov chains"
    checks = [
        Check(
            "R-hat",
            worst <= RHAT,
            f"at most {worst:.4g} {where} (should be at most {RHAT})"
            + ("; one chain can only be compared with itself" if chains == 1 else ""),
            f"the chains disagree on the function, not just on the weights"
            f"{given_chains}: a longer warmup, more draws, chains from one good start "
            "(`init_to_value`), or a prior that leaves fewer modes."
            + (
                ""
                if origin_is_known
                else " Members of an ensemble may differ: tree.attrs['inference'] = "
                "'ensemble' says that they are not chains."
            ),
        ),
        Check(
            "ESS",
            bool(np.minimum(bulk, tail) >= enough),
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
    if origin_is_known or chains > 1:
        return checks
    return [check if check.passed else _withhold_judgement(check) for check in checks]


def _withhold_judgement(check: Check) -> Check:
    """Report a failure as not known: draws in a row need not be a Markov chain."""
    return dataclasses.replace(
        check,
        passed=None,
        finding=f"{check.finding}: not fine if the draws are one Markov chain, in "
        "order; meaningless if they are several chains in a row, members of an "
        "ensemble, or draws of a guide",
        advice="to_datatree(mcmc, ...) or to_datatree(fit, ..., guide=guide), which "
        "know what the draws are; for a dictionary, draws by chain (batch_ndims=2), or "
        "tree.attrs['inference'] = 'MCMC'.",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def check_sampler(stats: xr.Dataset) -> tuple[list[Check], np.ndarray | None]:
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
    else:
        checks.append(
            Check(
                "divergences",
                None,
                "whether draws diverged was not collected",
                'mcmc.run(..., extra_fields=("diverging",)), if the kernel is HMC.',
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


def check_loo(tree: xr.DataTree) -> tuple[list[Check], dict[str, Any]]:
    """PSIS-LOO of each observed site, with its Pareto k."""
    checks, results = [], {}
    likelihoods = _stats.group(tree, "log_likelihood")
    for name in _stats.names(likelihoods):
        broken = ~np.isfinite(likelihoods[name].values)
        if broken.any():
            checks.append(
                Check(
                    f"LOO of {name}",
                    False,
                    "the log likelihood is NaN or infinite for "
                    f"{_percent(broken.mean())} of draws and observations",
                    "observations inside the support of their distribution, and "
                    "parameters that are numbers at every draw.",
                    of_draws=bool(np.isnan(likelihoods[name].values).any()),
                )
            )
            continue
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
        # A NaN counts as high.
        high = int((~(k <= result.good_k)).sum())
        checks.append(
            Check(
                f"LOO of {name}",
                high == 0 and bool(np.isfinite(result.elpd)),
                f"ELPD {result.elpd:.1f} ± {result.se:.1f} nats, p {result.p:.1f}; "
                f"Pareto k above {result.good_k:.2f} for {high} of {k.size} "
                "observations",
                "a likelihood with heavier tails (StudentT), more draws, or K-fold "
                "cross-validation: for influential observations the estimate rests on "
                "a few draws. The draws themselves may be fine.",
                of_draws=False,
            )
        )
    return checks, results


def check_guide(stats: xr.Dataset) -> tuple[Check, float | None]:
    """The Pareto shape of a guide's importance weights."""
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
    return (
        Check(
            "guide's PSIS k",
            bool(k <= limit),
            f"{k:.2f} (should be at most {limit:.2f})",
            "more steps, a richer guide (AutoMultivariateNormal, "
            "AutoLowRankMultivariateNormal), or NUTS: the guide misses a part of the "
            "posterior. In many dimensions k is high even where means and predictions "
            "are good; compare them with data (`calibration`).",
        ),
        k,
    )
