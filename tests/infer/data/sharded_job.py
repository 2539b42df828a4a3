"""Inference with data on several devices, in a process that has them.

Run by test_sharding.py, which says in XLA_FLAGS how many; prints JSON.
"""

import json
import re
import tempfile
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import potential_energy

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC, run_mcmc, run_svi, shard_data
from pyrox_ppl.infer.resumable._segments import Segments

DEVICES = jax.device_count()
ROWS = 48 * DEVICES
# One bias is enough, as each random site makes every program below dearer to compile.
NET = eqx.nn.MLP(
    *(2, 1, 5, 1),
    use_final_bias=False,
    activation=jnp.tanh,
    key=jax.random.key(0),
)
KEY = jax.random.key(1)


def model(x, y):
    with px.bayesianize():
        mean = jax.vmap(px.bind(NET, "net"))(x)
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(mean, 0.3).to_event(1), obs=y)


def sizes(text):
    """How many arrays of the rows of all data, or of a shard, a program makes."""
    shapes = re.findall(r"= \(?f32\[([\d,]*)\]", text)
    dims = [shape.split(",") for shape in shapes]
    return {
        "whole": sum(str(ROWS) in d for d in dims),
        "shard": sum(str(ROWS // DEVICES) in d for d in dims),
        "dot_shard": len(re.findall(rf"= f32\[{ROWS // DEVICES},5\]\S* dot\(", text)),
        "all_reduce": len(re.findall(r" all-reduce(?:-start)?\(", text)),
    }


def difference(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in leaves)


def segment_program(kernel, data):
    """The program of run_mcmc with sharded data."""
    mcmc = MCMC(kernel, num_warmup=3, num_samples=2, progress_bar=False)
    options = {"init_params": None, "extra_fields": (), "size": 2}
    segments = Segments(mcmc, KEY, data, {}, **options)
    arguments = (*segments.example, segments._data)
    return segments._compile().lower(*arguments).compile().as_text()


def compiled_nuts(kernel, data):
    """The draws of CompiledMCMC, and the program that made them."""
    mcmc = CompiledMCMC(kernel, num_warmup=3, num_samples=2, progress_bar=False)
    function, texts = mcmc._programs._run, []

    def sample(key, *arrays):
        program = jax.jit(partial(function, key)).lower(*arrays).compile()
        texts.append(program.as_text())
        return program(*arrays)

    mcmc._programs.run = sample
    mcmc.run(KEY, *data)
    (text,) = texts
    return mcmc.get_samples(), text


def main():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 2)).astype(np.float32)
    y = np.sin(x[:, :1])
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=auto)
    sharded = shard_data(mesh, x, y)
    found = {"devices": len(sharded[0].sharding.device_set)}

    svi = SVI(model, AutoNormal(model), optax.adam(1e-2), Trace_ELBO())
    update = jax.jit(svi.update)
    states = [svi.init(KEY, x, y)] * 2
    found["svi"] = sizes(update.lower(states[0], *sharded).compile().as_text())
    for _ in range(5):
        pairs = [update(s, *d) for s, d in zip(states, ((x, y), sharded), strict=True)]
        states = [state for state, _ in pairs]
    found["svi_difference"] = difference(*(svi.get_params(s) for s in states))
    found["loss_difference"] = abs(1 - float(pairs[0][1]) / float(pairs[1][1]))

    # Short trajectories, on which rounding does not grow.
    kernel = NUTS(model, step_size=0.01, adapt_step_size=False, max_tree_depth=3)

    @jax.jit
    def gradient(z, x, y):
        return jax.value_and_grad(partial(potential_energy, model, (x, y), {}))(z)

    z = svi.guide.median(svi.get_params(states[0]))
    found["potential"] = sizes(gradient.lower(z, *sharded).compile().as_text())
    whole, parts = gradient(z, x, y), gradient(z, *sharded)
    scale = float(whole[0])
    found["potential_difference"] = difference(whole, parts) / scale

    def resume(data):
        mcmc = MCMC(kernel, num_warmup=3, num_samples=2, progress_bar=False)
        with tempfile.TemporaryDirectory() as folder:
            run_mcmc(mcmc, KEY, *data, path=f"{folder}/run")
            losses = run_svi(
                svi, KEY, 4, *data, path=f"{folder}/svi", progress_bar=False
            ).losses
        return mcmc.get_samples(), losses

    (one, one_losses), (other, other_losses) = resume((x, y)), resume(sharded)
    found["nuts_difference"] = difference(one, other)
    found["svi_losses_difference"] = difference(one_losses, other_losses) / scale
    first, second = (jax.tree.map(lambda v, i=i: v[i], one) for i in (0, 1))
    found["nuts_moved"] = difference(first, second)
    found["nuts"] = sizes(segment_program(kernel, sharded))
    draws, text = compiled_nuts(kernel, sharded)
    found["compiled_nuts"] = sizes(text)
    found["compiled_nuts_difference"] = difference(one, draws)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
