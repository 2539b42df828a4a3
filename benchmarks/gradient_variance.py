"""Gradient noise, step time and time to a held-out ELBO, of NumPyro's loss and ours.

Two networks, trained on batches of 512 until their ELBO hardly moves: an MLP 8-64-64-1
on a regression, and the network of `tutorials/digits.py`, with its prior and its rate
and without its dropout, on scikit-learn's 8x8 digits.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal
from side_by_side import ratio, report, take_turns
from sklearn.datasets import load_digits

import pyrox_ppl as px
from pyrox_ppl._loop_convolutions import with_fast_convolutions
from pyrox_ppl.infer import Flipout_ELBO, LocalReparam_ELBO, init_to_stored

KEY = jr.key(0)
BATCH = 512
LOSSES = {
    "mean field": TraceMeanField_ELBO(),
    "local": LocalReparam_ELBO(),
    "flipout": Flipout_ELBO(),
}


@dataclasses.dataclass
class Problem:
    """A model, its data and the data held out."""

    model: Callable
    train: tuple
    held_out: tuple
    steps: int
    rate: float
    init_scale: float


class Digits(eqx.Module):
    """Three convolutions, each normalised, and a linear readout."""

    convolutions: list
    norms: list
    readout: eqx.nn.Linear

    def __init__(self, key):
        *keys, readout_key = jr.split(key, 4)
        channels, strides, sides = (1, 8, 16, 24), (1, 2, 2), (8, 4, 2)
        self.convolutions = [
            eqx.nn.Conv2d(*channels[i : i + 2], 3, strides[i], padding=1, key=keys[i])
            for i in range(3)
        ]
        self.norms = [
            eqx.nn.LayerNorm((channels[i + 1], sides[i], sides[i])) for i in range(3)
        ]
        self.readout = eqx.nn.Linear(channels[-1] * 4, 10, key=readout_key)

    def __call__(self, image):
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            image = jax.nn.relu(norm(convolution(image)))
        return self.readout(image.ravel())


def regression() -> Problem:
    net0 = eqx.nn.MLP(8, 1, 64, 2, key=KEY)
    x = jr.normal(jr.key(1), (2560, 8))
    y = jnp.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * jr.normal(jr.key(2), (2560,))

    def model(x, y=None, size=None):
        with px.bayesianize(prior=px.priors.fan_in()):
            net = px.bind(net0, "net")
        with numpyro.plate("row", size or len(x), subsample_size=len(x)):
            mean = jax.vmap(net)(x)[:, 0]
            numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)

    return Problem(model, (x[:2048], y[:2048]), (x[2048:], y[2048:]), 4000, 2e-3, 0.02)


def digits() -> Problem:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = jnp.asarray(images[order], jnp.float32).reshape(-1, 1, 8, 8) / 16
    y = jnp.asarray(labels[order])
    net0 = Digits(KEY)
    prior = {
        "net.readout.weight": dist.Normal(0.0, 1.0),
        "*.bias": dist.Normal(0.0, 1.0),
        "*": px.priors.fan_in(2.0),
    }

    def model(x, y=None, size=None):
        with px.bayesianize(prior=prior):
            net = px.bind(net0, "net")
        with numpyro.plate("row", size or len(x), subsample_size=len(x)):
            numpyro.sample("y", dist.Categorical(logits=jax.vmap(net)(x)), obs=y)

    train, held_out = slice(0, 1097), slice(1297, None)
    parts = (x[train], y[train]), (x[held_out], y[held_out])
    return Problem(model, *parts, 4000, 5e-3, 0.01)


PROBLEMS = {"mlp 8-64-64-1": regression, "digits": digits}


def make_svi(problem: Problem, loss: Any) -> SVI:
    guide = AutoNormal(
        problem.model, init_loc_fn=init_to_stored, init_scale=problem.init_scale
    )
    return SVI(problem.model, guide, numpyro.optim.Adam(problem.rate), loss)


def train(problem: Problem, svi: SVI, steps: int, seed: int) -> tuple:
    """A compiled run of steps on random batches, and the keys of the steps."""
    size = len(problem.train[0])

    def step(state: Any, key: jax.Array) -> tuple:
        rows = jr.choice(key, size, (BATCH,), replace=False)
        x, y = (part[rows] for part in problem.train)
        return svi.update(state, x, y=y, size=size)

    @jax.jit
    @with_fast_convolutions
    def run(state: Any, keys: jax.Array) -> tuple:
        return jax.lax.scan(step, state, keys)

    return run, jr.split(jr.key(seed), steps)


def held_out_elbo(problem: Problem, svi: SVI) -> Callable:
    """The negative ELBO on the data held out, of 16 draws, per row."""
    loss = TraceMeanField_ELBO(num_particles=16)
    size = len(problem.train[0])

    @jax.jit
    def evaluate(state: Any) -> jax.Array:
        params = svi.get_params(state)
        x, y = problem.held_out
        value = loss.loss(KEY, params, svi.model, svi.guide, x, y=y, size=size)
        return value / size

    return evaluate


def gradient_variance(problem: Problem, svi: SVI, params: Any, loss: Any) -> float:
    x, y = (part[:BATCH] for part in problem.train)
    size = len(problem.train[0])

    def gradient(key: jax.Array) -> Any:
        return jax.grad(
            lambda params: loss.loss(
                key, params, svi.model, svi.guide, x, y=y, size=size
            )
        )(params)

    @jax.jit
    @with_fast_convolutions
    def gradients(keys: jax.Array) -> Any:
        return jax.lax.map(gradient, keys)

    draws = gradients(jr.split(jr.key(4), 200))
    return float(sum(leaf.var(0).sum() for leaf in jax.tree.leaves(draws)))


def curve(problem: Problem, loss: Any, pieces: int = 40) -> np.ndarray:
    """The held-out ELBO after each piece of a training."""
    svi = make_svi(problem, loss)
    x, y = (part[:BATCH] for part in problem.train)
    state = svi.init(KEY, x, y=y, size=len(problem.train[0]))
    run, keys = train(problem, svi, problem.steps, seed=3)
    evaluate = held_out_elbo(problem, svi)
    values = []
    for part in jnp.split(keys, pieces):
        state, _ = run(state, part)
        values.append(float(evaluate(state)))
    return np.array(values)


def compare(name: str) -> list[dict[str, Any]]:
    """Rows: our losses over NumPyro's."""
    problem = PROBLEMS[name]()
    x, y = (part[:BATCH] for part in problem.train)
    svis = {key: make_svi(problem, loss) for key, loss in LOSSES.items()}
    states, steps = {}, {}
    for key, svi in svis.items():
        states[key] = svi.init(KEY, x, y=y, size=len(problem.train[0]))
        run, keys = train(problem, svi, 50, seed=5)
        steps[key] = lambda run=run, s=states[key], keys=keys: run(s, keys)
    # All three gradients are those at the same trained parameters.
    run, keys = train(problem, svis["local"], problem.steps, seed=6)
    svi = svis["local"]
    params = svi.get_params(run(states["local"], keys)[0])
    noise = {k: gradient_variance(problem, svi, params, v) for k, v in LOSSES.items()}
    seconds = take_turns(steps)
    curves = {key: curve(problem, loss) for key, loss in LOSSES.items()}
    # The target is what NumPyro's loss reaches at its end.
    target = np.median(curves["mean field"][-5:])
    pieces = {
        key: int(np.argmax(values <= target)) + 1 if (values <= target).any() else None
        for key, values in curves.items()
    }
    rows = []
    for key in ("local", "flipout"):
        cost, count = ratio(seconds, key, "mean field"), pieces[key]
        lower = noise["mean field"] / noise[key]
        fewer = None if count is None else count / (pieces["mean field"] or 1)
        rows.append(
            {
                "network": name,
                "loss": key,
                "variance, NumPyro's over it": f"{lower:.3g}",
                "step over NumPyro's": cost,
                "steps to its ELBO": "not reached" if fewer is None else f"{fewer:.2f}",
                "time to its ELBO": ""
                if fewer is None
                else f"{fewer * cost.median:.2f}",
            }
        )
    return rows


if __name__ == "__main__":
    chosen = sys.argv[1:] or PROBLEMS
    report("gradient_variance", [row for name in chosen for row in compare(name)])
