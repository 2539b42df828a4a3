"""`run_minibatches` beside a loop by hand: its start, its next call, its steps.

A mean-field network 8-W-W-1 on batches of 128 or 512 rows. By hand is NumPyro's
`svi.update` on slices of permuted rows, an epoch in one compiled program. Starting is
the time from the call to the end of the first step in a process of its own, where
NumPyro's `SVI.init` and one jitted update stand beside; the next call has other data of
the same shapes.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal
from side_by_side import Quartiles, ratio, report, take_turns

import pyrox_ppl as px
from pyrox_ppl.infer import MinibatchLoader, init_to_stored, run_minibatches

STEPS = 256  # of an epoch
OURS, HAND = "run_minibatches", "by hand"
# Width, batch and epochs of a run: what is done once for each call hardly counts.
SETTINGS = ((32, 128, 40), (32, 512, 40), (256, 512, 4))
KEY = jax.random.key(1)


def make(width, rows):
    net0 = eqx.nn.MLP(8, "scalar", width, 2, key=jax.random.key(0))

    def model(x, y):
        with px.bayesianize(prior=px.priors.fan_in()):
            net = px.bind(net0, "net")
        with numpyro.plate("row", rows, subsample_size=len(x)):
            numpyro.sample("y", dist.Normal(jax.vmap(net)(x), 0.1), obs=y)

    guide = AutoNormal(model, init_loc_fn=init_to_stored, init_scale=0.01)
    return SVI(model, guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO())


def data(rows, seed):
    x = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    return x, np.sin(2 * x[:, 0])


def compare_steps(width, batch, epochs):
    """Milliseconds of a step, shuffling included."""
    rows = STEPS * batch
    x, y = data(rows, 0)
    svi = make(width, rows)
    loader = MinibatchLoader((x, y), batch, rng_key=KEY)

    def ours():
        return run_minibatches(svi, KEY, loader, epochs, progress_bar=False).params

    by_hand = make(width, rows)
    state = by_hand.init(KEY, x[:batch], y[:batch])

    @jax.jit
    def epoch(state, order, x, y):
        x, y = x[order], y[order]

        def step(i, carry):
            state, losses = carry
            cut = [jax.lax.dynamic_slice_in_dim(a, i * batch, batch) for a in (x, y)]
            state, loss = by_hand.update(state, *cut)
            return state, losses.at[i].set(loss)

        return jax.lax.fori_loop(0, STEPS, step, (state, jnp.zeros(STEPS)))

    def hand():
        rng, last = np.random.default_rng(0), state
        for _ in range(epochs):
            last, losses = epoch(last, rng.permutation(rows), x, y)
        return last, losses

    seconds = take_turns({HAND: hand, OURS: ours}, rounds=11)
    return {way: taken * 1e3 / (STEPS * epochs) for way, taken in seconds.items()}


def start(way, width, batch):
    """Seconds to the end of the first step, and of the next call on other data."""
    svi = make(width, batch)
    update = jax.jit(svi.update)
    seconds = []
    for seed in range(2):
        x, y = data(batch, seed)
        began = time.perf_counter()
        if way == OURS:
            loader = MinibatchLoader((x, y), batch, rng_key=KEY)
            found = run_minibatches(svi, KEY, loader, 1, progress_bar=False).params
        else:
            found = update(svi.init(KEY, x, y), x, y)
        jax.block_until_ready(found)
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds))


def compare(width, batch, epochs, rounds):
    steps = compare_steps(width, batch, epochs)
    starts = {way: [] for way in (HAND, OURS)}
    for _ in range(rounds):
        for way, found in starts.items():
            call = [sys.executable, __file__, "--child", way, str(width), str(batch)]
            out = subprocess.run(call, capture_output=True, text=True, check=True)
            found.append(json.loads(out.stdout.splitlines()[-1]))
    for way, taken in steps.items():
        first, following = np.array(starts[way]).T
        yield {
            "network": f"8-{width}-{width}-1",
            "batch": batch,
            "way": way,
            "step / ms": f"{Quartiles.of(taken).median:.3g}",
            "step ratio": ratio(steps, way, HAND),
            "first step / s": Quartiles.of(first),
            "next call / s": Quartiles.of(following),
            "load": f"{os.getloadavg()[0]:.1f}",
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.child:
        start(arguments.child[0], *map(int, arguments.child[1:]))
    else:
        table = [
            row for setting in SETTINGS for row in compare(*setting, arguments.rounds)
        ]
        report("minibatches", table)
