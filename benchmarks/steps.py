"""Time of a leapfrog step and of an SVI step, by hand, by random module, and ours.

All in one process, taking turns; and the throughput of two chains on two devices in a
process of its own.
"""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpyro
from networks import NETWORKS, WAYS, setting
from numpyro.infer import NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from side_by_side import Quartiles, ratio, report, take_turns

from pyrox_ppl.infer import AutoFlatNormal, CompiledMCMC, FlatNUTS

KEY = jax.random.key(1)
ROUNDS = 21


def trajectories(kernel, inputs, y):
    """A function of 30 trees of 31 leapfrog steps each, of a kernel at rest."""
    data = {"model_args": inputs, "model_kwargs": {"y": y}}
    state = kernel.init(KEY, 0, init_params=None, **data)
    small = state.adapt_state._replace(step_size=jnp.asarray(1e-4))
    state = state._replace(adapt_state=small)

    @jax.jit
    def run(state, inputs, y):
        def body(_, carry):
            state, steps = carry
            state = kernel.sample(state, inputs, {"y": y})
            return state, steps + state.num_steps

        return jax.lax.fori_loop(0, 30, body, (state, jnp.asarray(0)))[1]

    return lambda: run(state, inputs, y)


def svi_steps(guide, model, inputs, y):
    """A function of 200 scanned steps."""
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    state = svi.init(KEY, *inputs, y=y)

    @jax.jit
    def run(state, inputs, y):
        def step(state, _):
            return svi.update(state, *inputs, y=y)

        return jax.lax.scan(step, state, length=200)

    return lambda: run(state, inputs, y)[1]


def compare(which):
    """Rows: leapfrog and SVI steps, over those by hand."""
    leapfrogs, steps = {}, {}
    for way in WAYS:
        model, (inputs, y) = setting(which, way)
        leapfrogs[way] = trajectories(NUTS(model, max_tree_depth=5), inputs, y)
        steps[way] = svi_steps(AutoNormal(model, init_scale=0.01), model, inputs, y)
    kernel = FlatNUTS(model, max_tree_depth=5)
    leapfrogs["ours, one vector"] = trajectories(kernel, inputs, y)
    guide = AutoFlatNormal(model, init_scale=0.01)
    steps["ours, one vector"] = svi_steps(guide, model, inputs, y)
    counts = {way: int(run()) for way, run in leapfrogs.items()}
    trees = take_turns(leapfrogs, rounds=ROUNDS)
    seconds = {way: times / counts[way] for way, times in trees.items()}
    for kind, found, scale in (
        ("leapfrog", seconds, 1e6),
        ("SVI step", take_turns(steps, rounds=ROUNDS), 1e6 / 200),
    ):
        for way in found:
            yield {
                "network": which,
                "step": kind,
                "way": way,
                "us": f"{Quartiles.of(found[way] * scale).median:.3g}",
                "over by hand": ratio(found, way, "by hand"),
                "over random module": ratio(found, way, "random module"),
            }


def throughput():
    """Two chains: the time one after the other, over the time on two devices."""
    model, (inputs, y) = setting("mlp", "ours")
    runs = {}
    for method in ("sequential", "parallel"):
        mcmc = CompiledMCMC(
            FlatNUTS(model, max_tree_depth=5),
            num_warmup=200,
            num_samples=200,
            num_chains=2,
            chain_method=method,
            progress_bar=False,
        )

        def run(mcmc=mcmc):
            mcmc.run(KEY, *inputs, y=y)
            return mcmc.get_samples()

        runs[method] = run
    found = ratio(take_turns(runs, rounds=11), "sequential", "parallel")
    print(json.dumps([found.low, found.median, found.high]))


if __name__ == "__main__":
    if sys.argv[1:] == ["--chains"]:
        throughput()
        sys.exit()
    devices = "--xla_force_host_platform_device_count=2"
    out = subprocess.run(
        [sys.executable, __file__, "--chains"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XLA_FLAGS": devices},
    ).stdout
    table = [row for which in NETWORKS for row in compare(which)]
    table.append(
        {
            "network": "mlp",
            "step": "two chains, sequential over two devices",
            "way": "ours, one vector",
            "over by hand": Quartiles(*json.loads(out.splitlines()[-1])),
        }
    )
    report("steps", table)
