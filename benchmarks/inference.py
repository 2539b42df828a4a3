"""NUTS, SVI and Predictive of three networks, from a cold start to the results.

NumPyro by hand, NumPyro's random module, and ours, a process each, taking turns: NUTS
to 100 + 100 draws and once more on other data, SVI to its 200th step, a second
Predictive of 1,000 draws of 2,000 points; ESS per second of the network's values.
Trees have a depth of 5 at most, so that the start weighs as when a model is being
written.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from networks import NETWORKS, WAYS, functions, setting
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from side_by_side import Quartiles, report

from pyrox_ppl.infer import (
    AutoFlatNormal,
    CompiledMCMC,
    CompiledPredictive,
    CompiledSVI,
    FlatNUTS,
)

COMPILE = "/jax/core/compile/backend_compile_duration"
KEY = jax.random.key(1)


def timed(function):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def counted():
    """A list that grows with every compilation."""
    names = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: names.append(event) if event == COMPILE else None
    )
    return names


def measure_nuts(which, way):
    model, (inputs, y) = setting(which, way)
    other = jax.block_until_ready((y + 0.1, KEY))[0]
    names, row = counted(), {}
    make, kernel = MCMC, NUTS(model, max_tree_depth=5)
    if way == "ours":
        make, kernel = CompiledMCMC, FlatNUTS(model, max_tree_depth=5)

    def sample(mcmc, data):
        mcmc.run(KEY, *inputs, y=data)
        return mcmc.get_samples()

    mcmc = make(kernel, num_warmup=100, num_samples=100, progress_bar=False)
    for run, data in (("cold", y), ("second", other)):
        before = len(names)
        row[f"NUTS {run} / s"] = timed(lambda data=data: sample(mcmc, data))[0]
        row[f"NUTS {run} compilations"] = len(names) - before
    long = make(kernel, num_warmup=400, num_samples=400, progress_bar=False)
    seconds, draws = timed(lambda: sample(long, y))
    row["400 + 400 draws / s"] = seconds
    values = np.asarray(functions(model, inputs, draws))[None]
    row["ESS per s"] = float(np.median(effective_sample_size(values))) / seconds
    return row | measure_predictive(which, way, draws)


def measure_predictive(which, way, draws):
    """The second call, and by how much the process grew beyond the output."""
    model, (inputs, _) = setting(which, way, points=2000)
    draws = jax.tree.map(lambda v: jnp.resize(v, (1000, *v.shape[1:])), draws)
    make = CompiledPredictive if way == "ours" else Predictive
    predictive = make(model, draws, return_sites=["y"])
    before = _peak()
    first, _ = timed(lambda: predictive(KEY, *inputs))
    second, out = timed(lambda: predictive(jax.random.key(2), *inputs))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(out)) / 2**20
    return {
        "Predictive first / s": first,
        "Predictive second / s": second,
        "Predictive peak MiB": _peak() - before - 2 * size,
    }


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_svi(which, way):
    model, (inputs, y) = setting(which, way)
    make, guide = SVI, AutoNormal(model, init_scale=0.01)
    if way == "ours":
        make, guide = CompiledSVI, AutoFlatNormal(model, init_scale=0.01)
    svi = make(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    jax.block_until_ready(KEY)
    names = counted()

    def fit():
        return svi.run(KEY, 200, *inputs, y=y, progress_bar=False)

    cold, result = timed(fit)
    before = len(names)
    second, _ = timed(fit)
    leaves = jax.tree.leaves(result.state.optim_state)
    return {
        "SVI start, 200 steps / s": cold,
        "SVI cold compilations": before,
        "SVI again / s": second,
        "SVI second compilations": len(names) - before,
        "optimiser bytes": sum(leaf.nbytes for leaf in leaves),
    }


KINDS = {"nuts": measure_nuts, "svi": measure_svi}


def child(kind, which, way):
    command = [sys.executable, __file__, "--child", kind, which, way]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def compare(which, rounds):
    """A row per way: medians, and ratios to NumPyro by hand, round by round."""
    measured = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            found = [child(kind, which, way) for kind in KINDS]
            measured[way].append(found[0] | found[1])
    for way in WAYS:
        row = {"network": which, "way": way}
        for name in measured[way][0]:
            values = np.array([float(m[name]) for m in measured[way]])
            base = np.array([float(m[name]) for m in measured["by hand"]])
            row[name] = float(f"{np.median(values):.6g}")
            if not name.endswith(("compilations", "bytes", "MiB")):
                row[f"{name.split(' /')[0]} ratio"] = Quartiles.of(values / base)
        yield row


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", nargs=3)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.child:
        kind, which, way = arguments.child
        print(json.dumps(KINDS[kind](which, way)))
    else:
        table = []
        for which in NETWORKS:
            table.extend(compare(which, arguments.rounds))
        report("inference", table)
