"""What a step of MCLMC costs beside the two gradients that it evaluates.

A network of 50 tanh units on data sets of several sizes: a loop of steps, within
CompiledMCMC's own program, against a loop of as many gradients of the same potential.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from side_by_side import ratio, report, take_turns

import pyrox_ppl as px
from pyrox_ppl.infer import MCLMC

STEPS = 500


def setting(rows):
    """A kernel with its state, the data, and the potential."""
    net = eqx.nn.MLP(5, 1, 50, 1, activation=jnp.tanh, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (rows, 5))

    def model(x, y):
        with px.bayesianize(prior_std=0.5):
            bound = px.bind(net, "net")
        f = jax.vmap(bound)(x)[:, 0]
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(f, 0.1), obs=y)

    kernel = MCLMC(model, step_size=1e-3, L=1.0)
    data = (x, jnp.sin(x.sum(1)))
    return kernel, kernel.init(jax.random.key(2), 0, None, data), data


def measure(rows, rounds):
    kernel, state, data = setting(rows)
    potential = kernel._potential(data, {})

    @jax.jit
    def steps(state):
        def body(_, state):
            return kernel.sample(state, data, {})

        return jax.lax.fori_loop(0, STEPS, body, state)

    @jax.jit
    def gradients(z):
        def body(_, z):
            return z - 1e-9 * jax.grad(potential)(z)

        return jax.lax.fori_loop(0, 2 * STEPS, body, z)

    runs = {"steps": lambda: steps(state), "gradients": lambda: gradients(state.z)}
    seconds = take_turns(runs, rounds=rounds)
    return {
        "rows": rows,
        "weights": state.z.size,
        "step / its two gradients": ratio(seconds, "steps", "gradients"),
    }


def main(sizes=(256, 1024, 4096), rounds=15):
    report("mclmc_step", [measure(rows, rounds) for rows in sizes])


if __name__ == "__main__":
    main()
