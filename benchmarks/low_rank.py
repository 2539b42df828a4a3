"""Low-rank adaptation against NumPyro's: effective draws of functions per gradient.

The three networks of the benchmarks, each with FlatNUTS in both ways: the same numbers
of warm-up steps and draws, the gradients of each phase counted. The functions are the
values of the network at its inputs; the number is the median, over inputs, of their
effective sample size per 1,000 gradients of the sampling phase.
"""

import argparse

import jax
import numpy as np
from networks import NETWORKS, functions, setting
from numpyro.diagnostics import effective_sample_size
from side_by_side import Quartiles, report

from pyrox_ppl.infer import CompiledMCMC, FlatNUTS

COUNT = ("num_steps",)


def measure(model, inputs, y, adaptation, warmup, draws, seed):
    """ESS of functions per 1,000 gradients, and the gradients of both phases."""
    mcmc = CompiledMCMC(
        FlatNUTS(model, adaptation=adaptation),
        num_warmup=warmup,
        num_samples=draws,
        progress_bar=False,
    )
    key = jax.random.key(seed)
    mcmc.warmup(key, *inputs, y=y, collect_warmup=True, extra_fields=COUNT)
    adapted = int(np.sum(mcmc.get_extra_fields()["num_steps"]))
    mcmc.run(jax.random.fold_in(key, 1), *inputs, y=y, extra_fields=COUNT)
    sampled = int(np.sum(mcmc.get_extra_fields()["num_steps"]))
    values = np.asarray(functions(model, inputs, mcmc.get_samples()))[None]
    ess = float(np.nanmedian(effective_sample_size(values)))
    return 1000 * ess / sampled, adapted, sampled


def main(networks, warmup, draws, seeds, points):
    rows = []
    for which in networks:
        model, (inputs, y) = setting(which, "ours", points)
        ratios = []
        for seed in range(seeds):
            numpyros, ours = (
                measure(model, inputs, y, how, warmup, draws, seed)
                for how in ("numpyro", "low_rank")
            )
            ratios.append(ours[0] / numpyros[0])
            print(which, seed, numpyros, ours, f"ratio {ratios[-1]:.2f}", flush=True)
        rows.append({"network": which, "ratio": Quartiles.of(ratios)})
    report("low_rank", rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--points", type=int, default=128)
    main(**vars(parser.parse_args()))
