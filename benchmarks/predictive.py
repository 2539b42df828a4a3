"""Predictions of 1,000 draws at 2,000 points: NumPyro's Predictive, and compiled once.

The first call in fresh processes that take turns; the second call, with other draws and
another key, in one process: a new Predictive each time, as it is used, and the same
CompiledPredictive with the draws set anew. Its memory is XLA's figure, beside results.
"""

import argparse
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from inference import COMPILE
from networks import PRIOR, make_model, network
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from side_by_side import Quartiles, ratio, report, take_turns, temporary_mebibytes

from pyrox_ppl.infer import CompiledPredictive

DRAWS, POINTS = 1000, 2000
MAKERS = {"numpyro": Predictive, "compiled": CompiledPredictive}


def problem(which):
    """A model, its inputs at all points, and a trace of its latent sites."""
    net, call, small, random = network(which)
    model = make_model("ours", net, call, random)
    keys = jax.random.split(jax.random.key(3), len(small))
    inputs = tuple(
        jax.random.normal(key, (POINTS, *array.shape[1:]))
        for key, array in zip(keys, small, strict=True)
    )
    seeded = numpyro.handlers.seed(model, jax.random.key(0))
    trace = numpyro.handlers.trace(seeded).get_trace(*small)
    shapes = {
        name: site["value"].shape
        for name, site in trace.items()
        if site["type"] == "sample" and name != "y"
    }
    return model, inputs, small, shapes


def draws_of(shapes, seed):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: PRIOR * jax.random.normal(key, (DRAWS, *shape))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def settings_of(kind, model, small, shapes):
    """Arguments of Predictive for two sets of draws, or of a guide's params."""
    if kind == "draws":
        return [{"posterior_samples": draws_of(shapes, seed)} for seed in (1, 2)]
    guide = AutoNormal(model, init_scale=0.01)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    params = svi.get_params(svi.init(jax.random.key(2), *small, y=small[0][:, 0]))
    more = jax.tree.map(lambda value: value + 0.01, params)
    return [
        {"guide": guide, "params": params, "num_samples": DRAWS, "return_sites": ["y"]}
        for params in (params, more)
    ]


def first_call(which, kind, way):
    """Seconds of the first call of this process."""
    model, inputs, small, shapes = problem(which)
    first, key = settings_of(kind, model, small, shapes)[0], jax.random.key(4)
    jax.block_until_ready((first.get("posterior_samples"), inputs, key))
    start = time.perf_counter()
    jax.block_until_ready(MAKERS[way](model, **first)(key, *inputs))
    return time.perf_counter() - start


def cold(*what):
    command = [sys.executable, __file__, "--child", *what]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(out.splitlines()[-1])


def compare(which, kind, rounds):
    """A row: first calls, second calls, their compilations, their memory."""
    names = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: names.append(event) if event == COMPILE else None
    )
    model, inputs, small, shapes = problem(which)
    first, second = settings_of(kind, model, small, shapes)
    kept = CompiledPredictive(model, **first)
    keys = jax.random.split(jax.random.key(5), 2)
    jax.block_until_ready(kept(keys[0], *inputs))
    renewed = "posterior_samples" if kind == "draws" else "params"

    def numpyros():
        return Predictive(model, **second)(keys[1], *inputs)

    def compiled():
        setattr(kept, renewed, second[renewed])
        return kept(keys[1], *inputs)

    counts = []
    for call in (numpyros, compiled):
        jax.block_until_ready((call(), call()))
        before = len(names)
        jax.block_until_ready(call())
        counts.append(len(names) - before)
    ours = compiled()["y"]
    if ours.shape != (DRAWS, POINTS):
        raise ValueError(f"the predictions have the shape {ours.shape}")
    apart = jnp.abs(ours - numpyros()["y"]).max()

    def pure(key, renewed_values, *inputs):
        fresh = CompiledPredictive(model, **second | {renewed: renewed_values})
        return fresh(key, *inputs)

    seconds = take_turns({"numpyro": numpyros, "compiled": compiled}, rounds=rounds)
    begun = np.array(
        [[cold(which, kind, way) for way in MAKERS] for _ in range(max(rounds // 3, 1))]
    )
    return {
        "network": which,
        "of": kind,
        "first call / s": f"{np.median(begun[:, 1]):.3g}",
        "first ratio": Quartiles.of(begun[:, 1] / begun[:, 0]),
        "second call / s": f"{np.median(seconds['compiled']):.3g}",
        "second ratio": ratio(seconds, "compiled", "numpyro"),
        "numpyro compilations": counts[0],
        "compilations": counts[1],
        "beside output / MiB": round(
            temporary_mebibytes(pure, keys[1], second[renewed], *inputs), 2
        ),
        "largest difference": f"{float(apart):.1e}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", nargs=3)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    if arguments.child:
        print(first_call(*arguments.child))
    else:
        pairs = [(which, of) for which in ("mlp", "field") for of in ("draws", "guide")]
        report("predictive", [compare(*pair, arguments.rounds) for pair in pairs])
