"""A step of mean-field SVI at four sizes of a network, over the same in raw JAX.

The classifier 784-W-W-10 on a batch of 256, with Adam. The raw code writes out what the
mathematics needs: a draw of the weights, the log likelihood, the divergence in closed
form. Steps take turns in one process, by the clock and by the time of the processor,
which other load disturbs less. Starting (from the call to the end of the first step, as
often as `--rounds`) and peak memory are those of a process each. "memory" is that of a
run from its start; "continued" adds a run from the state of the first, which the caller
of `CompiledSVI.run` keeps and the raw code gives away. Both hold XLA's compilation.
`--small` measures the smallest network alone, `--width` a chosen one.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.example_libraries import optimizers
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal
from side_by_side import Quartiles, ratio, report, take_turns

import pyrox_ppl as px
from pyrox_ppl.infer import AutoFlatNormal, CompiledSVI, init_to_stored

BATCH, ROWS, RATE, SCALE = 256, 60_000, 1e-3, 0.01
# Widths, with the number of steps between two looks at the clock. A GPU's are shorter:
# there are more of them, so that what the host does once for each call does not count.
STEPS = {64: 200, 256: 40, 1024: 10, 2800: 3}
FACTOR = 1 if jax.default_backend() == "cpu" else 100
RAW, OURS = "raw JAX", "AutoNormal, TraceMeanField_ELBO"
WAYS = (RAW, OURS, "AutoNormal, Trace_ELBO", "AutoFlatNormal, Trace_ELBO")
KEY = jax.random.key(1)


def setting(width):
    net = eqx.nn.MLP(784, 10, width, 2, key=jax.random.key(0))
    rows = jax.random.normal(KEY, (BATCH, 784))
    return jax.block_until_ready((net, rows, jnp.arange(BATCH) % 10))


def raw(net):
    """The first state, and steps from a state, which is given away."""
    loc, static = eqx.partition(net, eqx.is_inexact_array)
    init, update, get = optimizers.adam(RATE)

    def loss(params, key, x, y):
        loc, rho = params
        scale = jax.tree.map(jax.nn.softplus, rho)
        leaves, structure = jax.tree.flatten(loc)
        keys = jax.random.split(key, len(leaves))
        noise = [
            jax.random.normal(one, leaf.shape)
            for one, leaf in zip(keys, leaves, strict=True)
        ]
        noise = jax.tree.unflatten(structure, noise)
        weights = jax.tree.map(lambda m, s, e: m + s * e, loc, scale, noise)
        terms = jax.tree.map(
            lambda m, s: jnp.sum(0.5 * (s**2 + m**2 - 1.0) - jnp.log(s)), loc, scale
        )
        logits = jax.vmap(eqx.combine(weights, static))(x)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)
        return sum(jax.tree.leaves(terms)) - ROWS / len(y) * log_p.sum()

    def start(key):
        rho = jax.tree.map(lambda m: jnp.full_like(m, np.log(np.expm1(SCALE))), loc)
        return init((loc, rho)), key

    def advance(state, losses, x, y):
        def step(i, carry):
            (adam, key), losses = carry
            key, subkey = jax.random.split(key)
            value, grad = jax.value_and_grad(loss)(get(adam), subkey, x, y)
            return (update(i, grad, adam), key), losses.at[i].set(value)

        return jax.lax.fori_loop(0, len(losses), step, (state, losses))

    return jax.jit(start), jax.jit(advance, donate_argnums=0)


def ours(net, way):
    def model(x, y):
        with px.bayesianize(prior_std=1.0):
            logits = jax.vmap(px.bind(net, "net"))(x)
        with numpyro.plate("row", ROWS, subsample_size=len(x)):
            numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide, loss = way.split(", ")
    losses = {"Trace_ELBO": Trace_ELBO, "TraceMeanField_ELBO": TraceMeanField_ELBO}
    if guide == "AutoNormal":
        made = AutoNormal(model, init_loc_fn=init_to_stored, init_scale=SCALE)
    else:
        made = AutoFlatNormal(model, init_scale=SCALE)
    return CompiledSVI(model, made, numpyro.optim.Adam(RATE), losses[loss]())


def stepper(way, width):
    """A function that takes so many steps, the first state made anew or given."""
    net, x, y = setting(width)
    if way == RAW:
        start, advance = raw(net)

        def run(number, state=None):
            state = start(KEY) if state is None else state
            return advance(state, np.zeros(number, np.float32), x, y)[0]
    else:
        svi = ours(net, way)

        def run(number, state=None):
            fit = svi.run(KEY, number, x, y, init_state=state, progress_bar=False)
            return fit.state

    return run


def compare_steps(width):
    """Milliseconds of a step by the clock and of the processor, by way."""
    runs, number = {}, STEPS[width] * FACTOR
    for way in WAYS:
        run = stepper(way, width)
        states = [run(number)]

        def steps(run=run, states=states):
            states.append(run(number, states.pop()))
            return states

        runs[way] = steps
    clocks = [time.perf_counter, time.process_time]
    found = [take_turns(runs, rounds=15, clock=clock) for clock in clocks]
    scaled = [{way: s[way] * 1e3 / number for way in s} for s in found]
    return dict(zip(("step", "step, processor"), scaled, strict=True))


def peak_mebibytes():
    """The peak of the device's memory, or of this program's where it keeps no count."""
    counts = jax.devices()[0].memory_stats()
    if counts is not None:
        return counts["peak_bytes_in_use"] / 2**20
    # The figure of ``resource`` begins with the parent's peak.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def start(way, width):
    """Seconds to the end of the first step, and MiB by which the peak grew by then.

    "continued" is the growth until the end of another run, from the state of the first.
    """
    run = stepper(way, width)
    before = peak_mebibytes()
    clocks = time.perf_counter(), time.process_time()
    state = jax.block_until_ready(run(1))
    clock, processor = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    memory = peak_mebibytes() - before
    jax.block_until_ready(run(1, state))
    found = {
        "start": clock,
        "start, processor": processor,
        "memory": memory,
        "continued": peak_mebibytes() - before,
    }
    print(json.dumps(found))


def child(way, width):
    command = [sys.executable, __file__, "--child", way, str(width)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def compare_starts(width, rounds):
    found = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            found[way].append(child(way, width))
    kinds = found[RAW][0]
    return {
        kind: {way: np.array([one[kind] for one in found[way]]) for way in WAYS}
        for kind in kinds
    }


def compare(width, rounds):
    """A row per way."""
    net, *_ = setting(width)
    weights = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(net, eqx.is_array)))
    found = compare_steps(width) | compare_starts(width, rounds)
    units = {"step": "ms", "start": "s", "memory": "MiB", "continued": "MiB"}
    for way in WAYS:
        row = {"weights": weights, "way": way}
        for kind, values in found.items():
            if kind in units:
                name = f"{kind} / {units[kind]}"
                row[name] = f"{Quartiles.of(values[way]).median:.3g}"
            row[f"{kind} ratio"] = ratio(values, way, RAW)
        yield row | {"load": f"{os.getloadavg()[0]:.1f}"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--width", type=int, action="append", choices=list(STEPS))
    arguments = parser.parse_args()
    if arguments.child:
        start(arguments.child[0], int(arguments.child[1]))
    else:
        widths = arguments.width or (
            list(STEPS)[:1] if arguments.small else list(STEPS)
        )
        table = [row for width in widths for row in compare(width, arguments.rounds)]
        report("svi_scale", table)
