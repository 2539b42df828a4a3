"""What SVI holds and how long its step takes: bayesianize beside random_eqx_module."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import random_eqx_module
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from side_by_side import Quartiles, ratio, report, take_turns

import pyrox_ppl as px

STEPS, POINTS = 20, 256
PRIOR = dist.Normal(0.0, 0.1)


def likelihood(net, x, y):
    with numpyro.plate("points", x.shape[0]):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.1), obs=y)


def svi_of(model):
    return SVI(model, AutoNormal(model), numpyro.optim.Adam(1e-3), Trace_ELBO())


def measure(width):
    key = jax.random.key(0)
    mlp = eqx.nn.MLP(8, 1, width, 2, key=key)
    x = jax.random.normal(key, (POINTS, 8))
    y = jnp.sin(x.sum(1))

    def with_bayesianize(x, y):
        with px.bayesianize(prior=PRIOR):
            net = px.bind(mlp, "net")
        likelihood(net, x, y)

    def with_random_module(x, y):
        likelihood(random_eqx_module("net", mlp, PRIOR), x, y)

    rows, steps = [], {}
    models = {"bayesianize": with_bayesianize, "random_eqx_module": with_random_module}
    for name, model in models.items():
        svi = svi_of(model)
        state = svi.init(key, x, y)
        arrays = jax.tree.leaves(state.optim_state)

        @jax.jit
        def steps_of(state, svi=svi):
            return jax.lax.fori_loop(
                0, STEPS, lambda _, state: svi.update(state, x, y)[0], state
            )

        steps[name] = lambda state=state, run=steps_of: run(state).optim_state
        rows.append(
            {
                "width": width,
                "model": name,
                "params": len(jax.tree.leaves(svi.get_params(state))),
                "optimiser arrays": len(arrays),
                "optimiser bytes": sum(array.nbytes for array in arrays),
            }
        )
    seconds = take_turns(steps)
    for row in rows:
        row["bytes, relative"] = round(
            row["optimiser bytes"] / rows[0]["optimiser bytes"], 3
        )
        row["ms a step"] = Quartiles.of(1e3 * seconds[row["model"]] / STEPS)
        row["time, relative"] = ratio(seconds, row["model"], "bayesianize")
    return rows


def main():
    report("svi_state", [row for width in (64, 256, 512) for row in measure(width)])


if __name__ == "__main__":
    main()
