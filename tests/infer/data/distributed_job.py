"""Inference on data that two processes share, as one of them does it.

``python distributed_job.py PORT PROCESS FOLDER`` joins the other process at the port,
does everything in :func:`infer` and writes it to ``FOLDER/PROCESS.npz``, and what is
refused to ``FOLDER/PROCESS.json``.
"""

import json
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.experimental import multihost_utils
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import pyrox_ppl as px
from pyrox_ppl.infer import (
    CompiledMCMC,
    FlatNUTS,
    MinibatchLoader,
    run_mcmc,
    run_minibatches,
    run_svi,
    shard_data,
)

ROWS = 64


def model(x, y):
    net = eqx.nn.MLP(2, 1, 5, 1, activation=jnp.tanh, key=jax.random.key(0))
    with px.bayesianize():
        mean = jax.vmap(px.bind(net, "net"))(x)
    numpyro.deterministic("mean", mean)
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(mean, 0.3).to_event(1), obs=y)


def data():
    x = np.random.default_rng(0).normal(size=(ROWS, 2)).astype(np.float32)
    return x, np.sin(x[:, :1])


def key():
    return jax.random.key(1)


def make_svi():
    return SVI(model, AutoNormal(model), optax.adam(1e-2), Trace_ELBO())


def make_mcmc(cls=CompiledMCMC, kernel=NUTS, **kwargs):
    """Short trajectories, on which rounding does not grow."""
    nuts = kernel(model, step_size=0.01, adapt_step_size=False, max_tree_depth=3)
    settings = {"num_warmup": 3, "num_samples": 4, "progress_bar": False}
    return cls(nuts, **settings, **kwargs)


def infer(x, y):
    """SVI and NUTS, as ``name -> array``; every process has all of the results."""
    svi = make_svi()
    state, update, losses = svi.init(key(), x, y), jax.jit(svi.update), []
    for _ in range(5):
        state, loss = update(state, x, y)
        losses.append(loss)
    found = {"svi": {**svi.get_params(state), "losses": jnp.stack(losses)}}
    for name, mcmc in {
        "mcmc": make_mcmc(MCMC, jit_model_args=True),
        "compiled": make_mcmc(),
        "flat": make_mcmc(kernel=FlatNUTS, num_chains=2),
    }.items():
        mcmc.run(key(), x, y, extra_fields=("potential_energy",))
        found[name] = {**mcmc.get_samples(), **mcmc.get_extra_fields()}
    return {
        f"{group} {name}": whole(value)
        for group, values in found.items()
        for name, value in values.items()
    }


def whole(value):
    """An array of which other processes may hold a part."""
    if value.is_fully_addressable or value.is_fully_replicated:
        return np.asarray(value)
    return multihost_utils.process_allgather(value, tiled=True)


def refusals(folder, x, y):
    """What each function says that does not work in two processes."""
    loader = MinibatchLoader(data(), 16, rng_key=key())
    said = {}
    for name, call in {
        "run_mcmc": lambda p: run_mcmc(make_mcmc(), key(), x, y, path=p),
        "run_svi": lambda p: run_svi(make_svi(), key(), 4, x, y, path=p),
        "run_minibatches": lambda p: run_minibatches(
            make_svi(), key(), loader, 1, path=p
        ),
        "MCMC": lambda _: make_mcmc(MCMC).run(key(), x, y),
        "parallel": lambda _: spread_chains().run(key(), x, y),
    }.items():
        path = folder / f"{name}-{jax.process_index()}"
        try:
            call(path)
        except (ValueError, RuntimeError) as error:
            said[name] = f"{type(error).__name__}: {error}"
        assert not path.exists()
    return said


def spread_chains():
    """Chains over the devices of this process."""
    mcmc = make_mcmc(num_chains=2)
    mcmc.chain_method = "parallel"
    return mcmc


def main(port, process, folder):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=f"127.0.0.1:{port}",
        num_processes=2,
        process_id=process,
        initialization_timeout=60,
    )
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto)
    try:
        x, y = shard_data(mesh, *data())
    except ValueError as error:
        (folder / f"{process}.json").write_text(json.dumps({"shard_data": str(error)}))
        return
    np.savez(folder / f"{process}.npz", **infer(x, y))
    said = {
        "processes": jax.process_count(),
        "here": x.is_fully_addressable,
        "rows": [shard.data.shape[0] for shard in x.addressable_shards],
        **refusals(folder, x, y),
    }
    (folder / f"{process}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    _, port, process, folder = sys.argv
    main(int(port), int(process), Path(folder))
