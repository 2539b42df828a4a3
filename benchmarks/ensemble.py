"""Ten members of an ensemble against one: wall time and compilations.

A multilayer perceptron of width 50 on the yacht data (UCI), AutoDelta and AutoNormal.
Beside them the point estimate in raw JAX, ten members under `vmap`, five on each of two
devices: two cores that share ten times the work of one take five times as long, unless
a batch of members is cheaper than its members.
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
import optax
from jax.sharding import PartitionSpec
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


def raw(x, y):
    """One member and ten as a user would write them for two devices."""
    optimiser = optax.adam(1e-3)

    def loss(net):
        weights = jax.tree.leaves(eqx.filter(net, eqx.is_array))
        error = (y - jax.vmap(net)(x)[:, 0]) / 0.1
        return 0.5 * sum(jnp.sum(values**2) for values in [error, *weights])

    def train(key):
        arrays, static = eqx.partition(make(key), eqx.is_array)

        def step(carry, _):
            arrays, state = carry
            value, grad = jax.value_and_grad(lambda a: loss(eqx.combine(a, static)))(
                arrays
            )
            update, state = optimiser.update(grad, state)
            return (optax.apply_updates(arrays, update), state), value

        return jax.lax.scan(step, (arrays, optimiser.init(arrays)), length=STEPS)[1]

    over = PartitionSpec("member")
    spread = jax.shard_map(
        jax.vmap(train),
        mesh=jax.sharding.Mesh(np.array(jax.devices()), ("member",)),
        in_specs=over,
        out_specs=over,
        check_vma=False,
    )
    key, keys = jax.random.key(1), jax.random.split(jax.random.key(1), MEMBERS)
    one, many = jax.jit(train), jax.jit(spread)
    return lambda: one(key), lambda: many(keys)


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


def compare(name, run_one, run_many):
    """Print the wall time of ten members over that of one."""
    run_one(), run_many()
    pairs = [(timed(run_one), timed(run_many)) for _ in range(REPEATS)]
    of_one, of_many = np.transpose(pairs)
    ratio, fastest = np.median(of_many / of_one), of_many.min() / of_one.min()
    print(
        f"{name}: one member {np.median(of_one):.3f} s, {MEMBERS} members "
        f"{np.median(of_many):.3f} s, ratio {ratio:.2f}, of the fastest {fastest:.2f}"
    )


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
        compare(guide_class.__name__, run_one, run_many)
        print(f"    programs compiled: {first}, then {again}")
    compare("raw JAX, points", *raw(x, y))


if __name__ == "__main__":
    main()
