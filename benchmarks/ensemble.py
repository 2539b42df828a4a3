"""Ten members of an ensemble against one: wall time and compilations.

A multilayer perceptron of width 50 on the yacht data (UCI), AutoDelta and AutoNormal.
Run ``python benchmarks/ensemble.py [folder of the UCI data]``; without the data the
same shapes are filled with random numbers.
"""

import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal

import pyrox_ppl as px
from pyrox_ppl import infer

MEMBERS, STEPS, REPEATS = 10, 2000, 5
numpyro.set_host_device_count(2)  # a core for each half of the members


def make(key):
    """A network of the width that UCI benchmarks use."""
    return eqx.nn.MLP(6, 1, 50, 1, jax.nn.relu, key=key)


NET = make(jax.random.key(0))


def model(x, y=None):
    """A Bayesian network with known noise."""
    with px.bayesianize():
        net = px.bind(NET, "net")
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.1), obs=y)


def read_data():
    """The yacht data, standardised."""
    file = Path(sys.argv[1]) / "yacht/data.txt" if len(sys.argv) > 1 else None
    if file is not None:
        table = np.loadtxt(file)
    else:
        table = np.random.default_rng(0).normal(size=(308, 7))
    table = (table - table.mean(0)) / table.std(0)
    return jnp.asarray(table[:, :6]), jnp.asarray(table[:, 6])


def timed(run):
    """The wall time of a run, in seconds."""
    begin = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begin


def count_compilations(run):
    """How many programs a run compiles."""
    names = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    run()
    jax.monitoring.unregister_event_duration_listener(listen)
    return len(names)


def main():
    """Print the ratio of ten members to one, and what is compiled."""
    x, y = read_data()
    key = jax.random.key(1)
    for guide_class in (AutoDelta, AutoNormal):
        guide = guide_class(model, init_loc_fn=infer.init_to_stored)
        parts = model, guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO()
        one, many = infer.CompiledSVI(*parts), infer.CompiledSVI(*parts)

        def run_one(svi=one):
            return svi.run(key, STEPS, x, y=y, progress_bar=False).losses

        def run_many(svi=many, **kwargs):
            return infer.run_ensemble(
                svi,
                key,
                MEMBERS,
                STEPS,
                x,
                y=y,
                make=make,
                progress_bar=False,
                **kwargs,
            ).losses

        first = count_compilations(run_many)
        again = count_compilations(run_many)
        run_one()
        pairs = [(timed(run_one), timed(run_many)) for _ in range(REPEATS)]
        of_one, of_many = np.transpose(pairs)
        ratio, fastest = np.median(of_many / of_one), of_many.min() / of_one.min()
        print(
            f"{guide_class.__name__}: one member {np.median(of_one):.2f} s, {MEMBERS} "
            f"members {np.median(of_many):.2f} s, ratio {ratio:.2f} (at most 4; of the "
            f"fastest runs {fastest:.2f}); programs compiled: {first}, then {again}"
        )


if __name__ == "__main__":
    main()
