"""Diagnosing a network's posterior, and predicting with it: time and memory."""

import subprocess
import sys
import time
from pathlib import Path

import arviz_stats
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import ratio, report, take_turns

import pyrox_ppl as px
from pyrox_ppl._parameter import parameters_of

DRAWS, POINTS, SHORT = 2000, 100_000, 8192


def draws_of(module, name, shape, spread=0.1):
    """Draws around the stored parameters."""
    rng = np.random.default_rng(0)
    return {
        read.parameter.name: np.float32(
            read.stored + spread * rng.normal(size=shape + read.stored.shape)
        )
        for read in parameters_of(module, name)
    }


def mlp(width):
    return eqx.nn.MLP(1, 1, width, 2, activation=jnp.tanh, key=jax.random.key(0))


def line(points):
    return np.linspace(-1.0, 1.0, points, dtype=np.float32)[:, None]


def held(figure):
    """Memory of this process in MB, as Linux counts it: ``VmRSS`` or ``VmHWM``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(figure)) * 1024 / 1e6


def memory_on_top(function):
    """The result, the seconds, and the most memory beyond what was held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = held("VmRSS"), time.perf_counter()
    result = function()
    return result, time.perf_counter() - start, held("VmHWM") - before


def diagnosing():
    """One run in a fresh process: seconds with compilation, and memory on top."""
    module = mlp(98)
    tree = px.to_datatree(draws_of(module, "mlp", (4, 500)), batch_ndims=2)
    probes = jnp.asarray(line(100))
    diagnosis, seconds, memory = memory_on_top(
        lambda: px.diagnose(tree, module, probes)
    )
    if not diagnosis.ok:
        raise RuntimeError(str(diagnosis))
    start = time.perf_counter()
    arviz_stats.summary(tree)
    theirs = time.perf_counter() - start
    print(f"{seconds:.2f} {memory:.0f} {theirs:.1f}")


def predicting():
    """One run in a fresh process: seconds with compilation, and memory on top."""
    module, draws = mlp(64), draws_of(mlp(64), "mlp", (DRAWS,))
    px.predict(module, draws, line(8), progress_bar=False)
    _, seconds, memory = memory_on_top(
        lambda: px.predict(module, draws, line(POINTS), progress_bar=False)
    )
    print(f"{seconds:.1f} {memory:.0f}")


def in_a_fresh_process(what):
    out = subprocess.run(
        [sys.executable, __file__, what], capture_output=True, text=True, check=True
    ).stdout
    return [float(figure) for figure in out.split()]


def chunkings():
    """Predict some points in blocks of several sizes, and by two other ways."""
    module, draws, x = mlp(64), draws_of(mlp(64), "mlp", (DRAWS,)), line(SHORT)
    modules = px.modules_from_draws(module, draws)

    def with_blocks(size):
        return lambda: px.predict(module, draws, x, batch_size=size, progress_bar=False)

    @eqx.filter_jit
    def all_draws(modules, points):
        return eqx.filter_vmap(lambda net: jax.vmap(net)(points))(modules)

    def by_vmap():
        parts = [all_draws(modules, part) for part in np.split(x, len(x) // 512)]
        whole = np.concatenate([np.asarray(part) for part in parts], axis=1)
        return whole.mean(0), whole.std(0), np.quantile(whole, [0.05, 0.5, 0.95], 0)

    functions = {"default": with_blocks(None), "vmap over draws": by_vmap}
    functions |= {f"blocks of {n}": with_blocks(n) for n in (256, 1024, 2048, 8192)}
    seconds = take_turns(functions, rounds=3, warmup=1)
    fastest = min(functions, key=lambda name: np.median(seconds[name]))
    return [
        {
            "what": f"{name}, {DRAWS} x {SHORT}",
            "seconds": float(np.round(np.median(seconds[name]), 2)),
            "over the fastest": ratio(seconds, name, fastest),
        }
        for name in functions
    ]


def main():
    seconds, memory, theirs = in_a_fresh_process("diagnosing")
    rows = [
        {
            "what": "diagnose 4 x 500 draws of 9,997 weights",
            "seconds": seconds,
            "MB on top": memory,
        },
        {"what": "ArviZ's summary of the same", "seconds": theirs},
    ]
    seconds, memory = in_a_fresh_process("predicting")
    rows.append(
        {
            "what": f"predict {DRAWS} draws x {POINTS} points, 1-64-64-1",
            "seconds": seconds,
            "MB on top": memory,
        }
    )
    report("posterior", rows + chunkings())


if __name__ == "__main__":
    {"diagnosing": diagnosing, "predicting": predicting}.get(
        sys.argv[1] if len(sys.argv) > 1 else "", main
    )()
