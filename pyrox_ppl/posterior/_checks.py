"""The single checks of a posterior: what is fine, and what to try where it is not."""

import dataclasses
from typing import Any

import numpy as np
import xarray as xr

import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._diagnosis import Check
from pyrox_ppl.posterior._functions import FunctionStatistics

# Vehtari, Gelman, Simpson, Carpenter and Buerkner (Bayesian Analysis 2021).
RHAT, ESS_PER_CHAIN = 1.01, 100


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


def check_loo(tree: xr.DataTree) -> tuple[list[Check], dict[str, Any]]:
    """PSIS-LOO of each observed site, with its Pareto k."""
    checks, results = [], {}
    likelihoods = _stats.group(tree, "log_likelihood")
    is_seen = tree.attrs.get("rows_of_run")
    condition = (
        "; LOO is for rows that the fit has seen, `calibration` for held-out rows"
    )
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
        if is_seen == 0:
            checks.append(
                Check(
                    f"LOO of {name}",
                    None,
                    "not computed: it leaves out rows that the run has seen, and this "
                    "tree was made with other arguments than the run",
                    "px.calibration(tree) for held-out rows; for LOO, to_datatree with "
                    "the arguments of the run.",
                    remark="judge held-out rows by `calibration`",
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
        observed = _stats.group(tree, "observed_data")
        has_tails = name not in observed or observed[name].dtype.kind == "f"
        robust = "a likelihood with heavier tails (StudentT), " if has_tails else ""
        checks.append(
            Check(
                f"LOO of {name}",
                high == 0 and bool(np.isfinite(result.elpd)),
                f"ELPD {result.elpd:.1f} ± {result.se:.1f} nats, p {result.p:.1f}; "
                f"Pareto k above {result.good_k:.2f} for {high} of {k.size} "
                f"observations{'' if is_seen else condition}",
                f"{robust}more draws, held-out rows (`calibration`), or K-fold "
                "cross-validation: for influential observations the estimate rests on "
                "a few draws. The draws themselves may be fine.",
                of_draws=False,
            )
        )
    return checks, results
