"""Curvature of a network of a million weights: time against an epoch, and memory.

Run ``python benchmarks/laplace.py``; each case runs in a process of its own, so that
its peak memory is its own. The epoch is that of SVI with AutoDelta and Adam on the same
minibatches. All times are CPU times, which other processes do not lengthen, and medians
of alternating runs after one of each to compile.
"""

import resource
import statistics
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl.infer import init_to_stored
from pyrox_ppl.infer.curvature import ModelAtMode, make_curvature

ROWS, BATCH, WIDTH, REPEATS = 10_000, 1_000, 940, 3
# A structure, the number of outputs (classes beyond one), and `fisher_samples`.
CASES = [
    ("kron", 1, None),
    ("kron", 10, None),
    ("kron", 10, 1),
    ("diag", 1, None),
    ("diag", 10, None),
    ("diag", 10, 1),
    ("low_rank", 1, None),
    ("low_rank", 10, None),
]


def run(structure: str, outputs: int, samples: int | None) -> None:
    """Print the ratio of one case and its peak memory."""
    key = jax.random.key(0)
    net = eqx.nn.MLP(64, outputs, WIDTH, 2, key=key)
    x = jax.random.normal(jax.random.key(1), (ROWS, 64))
    y = jnp.sin(x[:, 0]) if outputs == 1 else jnp.arange(ROWS) % outputs

    def model(x: jax.Array, y: jax.Array) -> None:
        with px.bayesianize():
            bound = px.bind(net, "net")
        f = jax.vmap(bound)(x)
        with numpyro.plate("row", ROWS, subsample_size=len(x)):
            if outputs == 1:
                numpyro.sample("y", dist.Normal(f[:, 0], 0.1), obs=y)
            else:
                numpyro.sample("y", dist.Categorical(logits=f), obs=y)

    batches = [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, ROWS, BATCH)]
    guide = AutoDelta(model, init_loc_fn=init_to_stored)
    svi = SVI(model, guide, Adam(1e-3), Trace_ELBO())
    state = svi.init(key, *batches[0])
    update = jax.jit(svi.update)
    params = svi.get_params(state)
    mode = {n.removesuffix("_auto_loc"): value for n, value in params.items()}
    at_mode = ModelAtMode(model, mode, num_samples=samples)
    size = sum(value.size for value in mode.values())

    def epoch() -> None:
        nonlocal state
        for batch in batches:
            state, _ = update(state, *batch)
        jax.block_until_ready(state)

    begin = time.process_time()
    empty = make_curvature(structure, at_mode, batches[0], {}, key=key)
    start = time.process_time() - begin

    def curvature() -> None:
        found = empty
        for batch in batches:
            weight = BATCH / ROWS
            found = found.accumulate(at_mode, batch, {}, weight=weight, key=key)
        jax.block_until_ready(found.arrays)

    times = {epoch: [], curvature: []}
    for repeat in range(REPEATS + 1):
        for function, taken in times.items():
            begin = time.process_time()
            function()
            if repeat:
                taken.append(time.process_time() - begin)
    one, other = (statistics.median(times[f]) for f in (epoch, curvature))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    columns = "" if samples is None else f"fisher_samples={samples}, "
    print(
        f"{structure:9} {outputs:3} outputs, {columns}{size:,} weights: a pass takes "
        f"{other / one:.1f} epochs ({other:.1f} s / {one:.1f} s), start {start:.1f} s, "
        f"peak {peak:.2f} GiB",
        flush=True,
    )


def main() -> None:
    """Run all cases, or the one whose number is given."""
    if len(sys.argv) == 2:
        run(*CASES[int(sys.argv[1])])
        return
    for case in range(len(CASES)):
        subprocess.run([sys.executable, __file__, str(case)], check=True)


if __name__ == "__main__":
    main()
