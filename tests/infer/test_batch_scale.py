"""A batch that counts as all of the data is refused, and nothing else is."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from pyrox_ppl.infer import MinibatchLoader, run_ensemble, run_minibatches
from pyrox_ppl.infer._batch_scale import check_batch_scale

N, B = 6, 2
KEY = jax.random.key(0)
X, Y = np.arange(6.0, dtype=np.float32), np.ones(6, np.float32)


def observe(x, y, name="y"):
    slope = numpyro.sample(f"slope of {name}", dist.Normal(0.0, 1.0))
    numpyro.sample(name, dist.Normal(slope * x, 1.0), obs=y)


def factor(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.factor("likelihood", -jnp.sum((y - slope * x) ** 2))


def steps(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))

    def step(carry, row):
        numpyro.sample("y", dist.Normal(slope * row[0], 1.0), obs=row[1])
        return carry, None

    scan(step, 0.0, (x, y))


def plate(x, size=N):
    return numpyro.plate("row", size, subsample_size=len(x))


def on_a_plate(x, y, size=N):
    with plate(x, size):
        observe(x, y)


def on_the_batch(x, y):
    on_a_plate(x, y, size=len(x))


def one_of_two(x, y):
    on_a_plate(x, y)
    observe(x, y, "other")


def masked(x, y):
    with handlers.mask(mask=y > 0):
        observe(x, y)


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (observe, "y"),
        (on_the_batch, "y"),
        (one_of_two, "other"),
        (masked, "y"),
        (factor, "likelihood"),
        (steps, "y"),
        (handlers.scale(observe, scale=1.0), "y"),
    ],
)
def test_rows_that_nothing_scales_are_refused(model, site):
    message = rf"batch of 2 of 6 rows must count 3 times, and the site '{site}'"
    with pytest.raises(ValueError, match=message):
        check_batch_scale(model, (X[:B], Y[:B]), N, {})
    check_batch_scale(model, (X, Y), N, {})


def beside_a_summary(x, y):
    on_a_plate(x, y)
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.sample("summary", dist.Normal(mean, 1.0), obs=jnp.ones(len(x)))
    numpyro.factor("penalty", -(mean**2))


def factor_on_a_plate(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with plate(x):
        numpyro.factor("likelihood", -((y - slope * x) ** 2))


def local(x, y):
    with plate(x):
        observe(x, y)


def masked_on_a_plate(x, y):
    with plate(x):
        masked(x, y)


@pytest.mark.parametrize(
    "model",
    [
        on_a_plate,
        beside_a_summary,
        factor_on_a_plate,
        local,
        masked_on_a_plate,
        handlers.scale(on_a_plate, scale=0.1),
        handlers.scale(on_a_plate, scale=B / N),  # a temperature, by chance
        handlers.scale(observe, scale=N / B),
        handlers.scale(observe, scale=jnp.array(N / B)),
        handlers.scale(factor, scale=N / B),
        handlers.scale(steps, scale=N / B),
    ],
)
def test_scaled_rows_and_sites_without_rows_pass(model):
    check_batch_scale(model, (X[:B], Y[:B]), N, {})


@pytest.mark.parametrize("run", [run_minibatches, run_ensemble])
def test_runs_with_a_loader_refuse(run):
    svi = SVI(observe, AutoNormal(observe), numpyro.optim.Adam(0.1), Trace_ELBO())
    loader = MinibatchLoader((X, Y), B, rng_key=KEY)
    sizes = (loader, 1) if run is run_minibatches else (2, 1, loader)
    with pytest.raises(ValueError, match="must count 3 times"):
        run(svi, KEY, *sizes)
