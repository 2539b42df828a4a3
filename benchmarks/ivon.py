"""IVON beside Adam: the time of a step, and how soon and where the digits' fit ends.

A step of each on networks of three sizes, taking turns. Then a mean-field network on
scikit-learn's digits: the loss (negative ELBO by training row) and the held-out log
score and accuracy of 64 draws, and the steps until the loss is below a target. Rates
are constant, or fall linearly to zero.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer import SVI, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal
from side_by_side import Quartiles, ratio, report, take_turns
from sklearn.datasets import load_digits

import pyrox_ppl as px
from pyrox_ppl.infer import IVON, init_to_stored

KEY, STEPS, BATCH, EVERY = jax.random.key(0), 20, 128, 250
TARGETS = (2.0, 1.3)


def digits():
    """Rows to train on and to hold out, in an order of our own."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = jnp.asarray(x[order] / 16.0, jnp.float32), jnp.asarray(y[order])
    return (x[:1297], y[:1297]), (x[1297:], y[1297:])


TRAIN, TEST = digits()
ROWS = len(TRAIN[1])


def make_svi(width, optim, init_scale):
    network = eqx.nn.MLP(64, 10, width, 2, key=KEY)

    def model(x, y=None):
        with px.bayesianize(prior_std=0.3):
            net = px.bind(network, "net")
        logits = numpyro.deterministic("logits", jax.vmap(net)(x))
        with numpyro.plate("row", ROWS, subsample_size=len(x)):
            numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide = AutoNormal(model, init_loc_fn=init_to_stored, init_scale=init_scale)
    return SVI(model, guide, optim, TraceMeanField_ELBO())


def compare_steps(width):
    """A row per optimiser: the time of a step, and what it holds."""
    steps, sizes, batch = {}, {}, tuple(part[:BATCH] for part in TRAIN)
    optimisers = {"Adam": numpyro.optim.Adam(1e-3), "IVON": IVON(0.1)}
    for name, optim in optimisers.items():
        svi = make_svi(width, optim, 0.1)
        state = svi.init(KEY, *batch)

        @jax.jit
        def run(state, batch, svi=svi):
            return jax.lax.fori_loop(
                0, STEPS, lambda _, state: svi.update(state, *batch)[0], state
            )

        steps[name] = lambda state=state, run=run: run(state, batch).optim_state
        sizes[name] = sum(leaf.nbytes for leaf in jax.tree.leaves(state.optim_state))
    seconds = take_turns(steps, rounds=21)
    for name in optimisers:
        yield {
            "width": width,
            "optimiser": name,
            "ms a step": Quartiles.of(1e3 * seconds[name] / STEPS),
            "time over Adam's": ratio(seconds, name, "Adam"),
            "bytes over Adam's": round(sizes[name] / sizes["Adam"], 3),
        }


def judge(svi):
    """A function of a state: the loss by row, the held-out log score and accuracy."""

    def draw_logits(key, params):
        guide = handlers.substitute(handlers.seed(svi.guide, key), params)
        draws = {n: v for n, v in guide(*TRAIN).items()}
        model = handlers.substitute(handlers.seed(svi.model, key), draws)
        return handlers.trace(model).get_trace(TEST[0])["logits"]["value"]

    @jax.jit
    def measure(state):
        keys, params = jax.random.split(KEY, 64), svi.get_params(state)
        logits = jax.vmap(lambda key: draw_logits(key, params))(keys)
        mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), 0) - jnp.log(64.0)
        score = -jnp.take_along_axis(mean, TEST[1][:, None], 1).mean()
        losses = jax.vmap(
            lambda key: svi.loss.loss(key, params, svi.model, svi.guide, *TRAIN)
        )(keys[:16])
        return losses.mean() / ROWS, score, (mean.argmax(1) == TEST[1]).mean()

    return measure


def fit(name, optim, init_scale, steps):
    """The row of a run."""
    svi = make_svi(64, optim, init_scale)
    state = svi.init(KEY, *(part[:BATCH] for part in TRAIN))
    measure = judge(svi)

    @jax.jit
    def advance(state, key):
        def step(state, key):
            rows = jax.random.choice(key, ROWS, (BATCH,), replace=False)
            return svi.update(state, *(part[rows] for part in TRAIN))

        return jax.lax.scan(step, state, jax.random.split(key, EVERY))[0]

    losses = []
    for key in jax.random.split(KEY, steps // EVERY):
        state = advance(state, key)
        loss, score, accuracy = (float(value) for value in measure(state))
        losses.append(loss)
    row = {"run": name, "steps": steps, "loss by row": f"{loss:.3f}"}
    for target in TARGETS:
        reached = [EVERY * (i + 1) for i, loss in enumerate(losses) if loss < target]
        row[f"steps to {target}"] = reached[0] if reached else "never"
    return row | {"log score": f"{score:.3f}", "accuracy": f"{accuracy:.3f}"}


def compare_fits(steps):
    def falling(rate):
        return lambda i: rate * jnp.maximum(1.0 - i / steps, 0.0)

    for rate in (1e-3, 3e-3, 1e-2, 3e-2):
        optim = numpyro.optim.Adam
        if rate != 3e-2:
            yield fit(f"Adam({rate})", optim(rate), 0.05, steps)
        if rate != 1e-3:
            yield fit(f"Adam({rate}, falling)", optim(falling(rate)), 0.05, steps)
    for rate, b2, radius in (
        (0.1, 0.999, np.inf),
        (0.1, 0.997, 0.1),
        (0.03, 0.99, 0.1),
    ):
        for schedule, said in ((lambda r: r, ""), (falling, ", falling")):
            optim = IVON(schedule(rate), b2=b2, clip_radius=radius)
            name = f"IVON({rate}{said}, b2={b2}, clip_radius={radius})"
            yield fit(name, optim, 0.1, steps)


def main():
    report(
        "ivon_steps", [row for width in (64, 256, 512) for row in compare_steps(width)]
    )
    report("ivon_digits", list(compare_fits(5000)))


if __name__ == "__main__":
    main()
