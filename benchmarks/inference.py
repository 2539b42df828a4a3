"""NUTS and SVI of three networks: NumPyro by hand, NumPyro's random module, and ours.

A process each, the ways taking turns: cold time to 100 + 100 draws, compilations, the
same again with other data, time per leapfrog step; SVI's start and step. Small trees
(depth 5), so that the start weighs as it does when a model is being written.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import random_eqx_module
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from side_by_side import Quartiles, report

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC, FlatNUTS
from pyrox_ppl.nn import SIREN, ConditionedINR, FiLM

NETWORKS = ("field", "mlp", "deep")
WAYS = ("by hand", "random module", "ours")
PRIOR = 0.3
COMPILE = "/jax/core/compile/backend_compile_duration"


def network(which):
    """A network, how it is called, its inputs, and which of its arrays are random."""
    key = jax.random.key(0)
    if which == "field":
        inner = SIREN.init(
            2, 32, 1, depth=6, first_omega=2.0, hidden_omega=2.0, key=key
        )
        field = ConditionedINR.init(inner, conditioner_cls=FiLM, cond_dim=4, key=key)
        x, z = jax.random.normal(key, (128, 2)), jax.random.normal(key, (128, 4))
        return field, lambda net, x, z: net(x, z)[:, 0], (x, z), ".conditioners"
    width, depth = (32, 2) if which == "mlp" else (16, 19)
    net = eqx.nn.MLP(1, 1, width, depth, activation=jnp.tanh, key=key)
    x = jnp.linspace(-1.0, 1.0, 128)[:, None]
    return net, lambda net, x: jax.vmap(net)(x)[:, 0], (x,), ""


def by_hand(net, random):
    """A sample site per random array, as a NumPyro user writes it."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(net)
    drawn = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        if eqx.is_inexact_array(leaf) and name.startswith(random):
            prior = dist.Normal(0.0, PRIOR).expand(leaf.shape).to_event(leaf.ndim)
            leaf = numpyro.sample(name, prior)
        drawn.append(leaf)
    return jax.tree.unflatten(treedef, drawn)


def random_module(net, random):
    """All arrays random: it has no choice that keeps the others as they are."""
    return random_eqx_module("net", net, prior=dist.Normal(0.0, PRIOR))


def ours(net, random):
    with px.bayesianize(prior_std=PRIOR):
        return px.bind(net, "net")


MAKERS = dict(zip(WAYS, (by_hand, random_module, ours), strict=True))


def make_model(way, net, call, random):
    def model(*inputs, y=None):
        f = call(MAKERS[way](net, random), *inputs)
        with numpyro.plate("row", f.shape[0]):
            numpyro.sample("y", dist.Normal(f, 0.1), obs=y)

    return model


def timed(function):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def measure(which, way):
    """What one process measures."""
    names = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: names.append(event) if event == COMPILE else None
    )
    net, call, inputs, random = network(which)
    model = make_model(way, net, call, random)
    y = jnp.sin(3.0 * inputs[0][:, 0])
    key, other = jax.random.key(1), y + 0.1
    jax.block_until_ready((net_arrays(net), other, key))
    make, kernel = MCMC, NUTS(model, max_tree_depth=5)
    if way == "ours":
        make, kernel = CompiledMCMC, FlatNUTS(model, max_tree_depth=5)
    mcmc = make(kernel, num_warmup=100, num_samples=100, progress_bar=False)
    row = {}
    for run, data in (("cold", y), ("second", other)):
        before = len(names)

        def sample(data=data):
            mcmc.run(key, *inputs, y=data)
            return mcmc.get_samples()

        row[f"{run} / s"] = timed(sample)[0]
        row[f"{run} compilations"] = len(names) - before
    step = jax.jit(partial(trajectories, kernel))
    seconds = []
    for _ in range(4):
        time_taken, steps = timed(lambda: step(key, inputs, y))
        seconds.append(time_taken / int(steps))
    row["leapfrog / us"] = 1e6 * float(np.median(seconds[1:]))
    return row | measure_svi(model, inputs, y)


def net_arrays(net):
    return eqx.filter(net, eqx.is_array)


def trajectories(kernel, key, inputs, y):
    """The leapfrog steps of 100 iterations of a kernel that does not adapt."""
    state = kernel.init(key, 0, model_args=inputs, model_kwargs={"y": y})
    small = state.adapt_state._replace(step_size=jnp.asarray(1e-3))

    def body(_, carry):
        state, steps = carry
        state = kernel.sample(state, inputs, {"y": y})
        return state, steps + state.num_steps

    start = (state._replace(adapt_state=small), jnp.asarray(0))
    return jax.lax.fori_loop(0, 100, body, start)[1]


def measure_svi(model, inputs, y):
    """SVI as NumPyro runs it, on the model of each way."""
    guide = AutoNormal(model, init_scale=0.01)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    init, state = timed(lambda: svi.init(jax.random.key(2), *inputs, y=y))

    @jax.jit
    def steps(state, inputs, y):
        def step(s, _):
            return svi.update(s, *inputs, y=y)

        return jax.lax.scan(step, state, length=200)

    first, _ = timed(lambda: steps(state, inputs, y))
    again = [timed(lambda: steps(state, inputs, y))[0] for _ in range(5)]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.optim_state))
    return {
        "SVI start / s": init + first,
        "SVI step / us": 1e6 * float(np.median(again)) / 200,
        "optimiser / bytes": size,
    }


def child(which, way):
    command = [sys.executable, __file__, "--child", which, way]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def compare(which, rounds):
    """A row per way: medians, and ratios to NumPyro by hand, round by round."""
    measured = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            measured[way].append(child(which, way))
    for way in WAYS:
        row = {"network": which, "way": way}
        for name in measured[way][0]:
            values = np.array([float(m[name]) for m in measured[way]])
            base = np.array([float(m[name]) for m in measured["by hand"]])
            if name.endswith(("compilations", "bytes")):
                row[name] = int(np.median(values))
            else:
                row[name] = f"{np.median(values):.3g}"
                row[f"{name.split(' /')[0]} ratio"] = Quartiles.of(values / base)
        yield row


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
    else:
        table = []
        for which in NETWORKS:
            table.extend(compare(which, arguments.rounds))
        report("inference", table)
