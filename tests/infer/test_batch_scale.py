"""A batch that counts as all of the data is refused, and nothing else is."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from pyrox_ppl.infer._batch_scale import check_batch_scale

N, B = 6, 2
X, Y = np.arange(6.0, dtype=np.float32), np.ones(6, np.float32)


def observe(x, y, name="y", scale=1.0):
    slope = numpyro.sample(f"slope of {name}", dist.Normal(0.0, 1.0))
    with handlers.scale(scale=scale):
        numpyro.sample(name, dist.Normal(slope * x, 1.0), obs=y)


def factor(x, y, scale=1.0):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with handlers.scale(scale=scale):
        numpyro.factor("likelihood", -jnp.sum((y - slope * x) ** 2))


def mean_over_rows(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with handlers.scale(scale=N):
        numpyro.factor("likelihood", -jnp.mean((y - slope * x) ** 2))


def mean_of_all(x, y):
    """The whole loss divided by the number of rows, in two scales."""
    with handlers.scale(scale=1 / N):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with handlers.scale(scale=1 / len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def steps(x, y, scale=1.0):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))

    def step(carry, row):
        numpyro.sample("y", dist.Normal(slope * row[0], 1.0), obs=row[1])
        return carry, None

    with handlers.scale(scale=scale):
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


def one_of_two_tempered(x, y):
    on_a_plate(x, y)
    observe(x, y, "other", scale=0.1 * N / len(x))


def masked(x, y):
    with handlers.mask(mask=y > 0):
        observe(x, y)


def readings_of_rows(x, y):
    """Three of nine readings of each row: that plate scales no rows."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(x), dim=-2), numpyro.plate("reading", 9, 3, dim=-1):
        numpyro.sample("y", dist.Normal(slope * x[:, None], 1.0), obs=y[:, None])


def another_prior_inside(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with handlers.scale(scale=N / len(x)):
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def penalty(x, y, inside=True):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with handlers.scale(scale=N / len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
    with handlers.scale(scale=N / len(x) if inside else 1.0):
        numpyro.factor("penalty", -(slope**2))


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
        (handlers.scale(observe, scale=N / B), "y"),  # the prior counts as often
        (partial(observe, scale=B / N), "y"),  # upside down
        (partial(observe, scale=N), "y"),  # as if it were the mean over the batch
        (partial(observe, scale=1 / B), "y"),  # that mean
        (readings_of_rows, "y"),
        (lambda x, y: observe(x, y, scale=jnp.ones(()) / 1.0), "y"),
        (another_prior_inside, "y"),
        (penalty, "y"),
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


def latents_of_rows(x, y):
    """All latents belong to rows, and are scaled with them."""
    with handlers.scale(scale=N / B):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(len(x)), 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def windows(x, y):
    """A row is a window of two steps out of a series of seven."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("step", N + 1, subsample_size=2 * len(x)):
        numpyro.sample("y", dist.Normal(slope * jnp.repeat(x, 2), 1.0), obs=1.0)


def half_of_the_batch(x, y):
    """The other half has no labels."""
    on_a_plate(x[: len(x) // 2], y[: len(x) // 2], size=N // 2)


def rows_and_readings(x, y, few=3):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    y = jnp.repeat(y, 3).reshape(len(x), 3)[:, :few]
    with plate_of_rows(x), numpyro.plate("reading", 9, few, dim=-1):
        numpyro.sample("y", dist.Normal(slope * x[:, None], 1.0), obs=y)


def part_of_the_batch(x, y):
    on_a_plate(x[:1], y[:1])


def local_latents(x, y, scale=N / B):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(x)):
        with handlers.scale(scale=scale):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with handlers.scale(scale=N / len(x)):
            numpyro.sample("y", dist.Normal(z + slope * x, 1.0), obs=y)


def series(x, y, size=N, scale=1.0):
    """A row is a series, and NumPyro wants the plate inside of the scan."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))

    def step(carry, y):
        with plate(x, size), handlers.scale(scale=scale):
            numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        return carry, None

    scan(step, 0.0, jnp.stack([y, y, y]))


def plate_of_rows(x):
    return numpyro.plate("row", N, subsample_size=len(x), dim=-2)


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
        partial(observe, scale=N / B),
        partial(observe, scale=jnp.array(N / B)),
        partial(observe, scale=0.1 * N / B),  # a temperature
        partial(factor, scale=N / B),
        mean_over_rows,
        mean_of_all,
        partial(steps, scale=N / B),
        handlers.scale(on_a_plate, scale=1 / N),  # the whole loss, a row
        latents_of_rows,
        windows,
        half_of_the_batch,
        rows_and_readings,
        partial(rows_and_readings, few=2),
        part_of_the_batch,
        local_latents,
        series,
        partial(penalty, inside=False),
    ],
)
def test_scaled_rows_and_sites_without_rows_pass(model):
    check_batch_scale(model, (X[:B], Y[:B]), N, {})


def twice(x, y):
    with plate(x):
        observe(x, y, scale=N / B)


def flattened(x, y):
    """Three readings of a row on one plate, whose size forgets them."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", N, subsample_size=2 * len(x)):
        numpyro.sample("y", dist.Normal(slope * jnp.repeat(x, 2), 1.0), obs=1.0)


def drawn_again(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with plate(x) as rows:
        numpyro.sample("y", dist.Normal(slope * x[rows], 1.0), obs=y[rows])


def prior_alone(x, y):
    with handlers.scale(scale=N / len(x)):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with plate(x):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (prior_alone, "prior of 'slope', .* counts 3 times .* plate of the site 'y'"),
        (partial(on_a_plate, size=60), "plate 'row' takes 2 of 60 rows, .* 2 of 6"),
        (partial(on_a_plate, size=4), "plate 'row' takes 2 of 4 rows, .* 2 of 6"),
        (flattened, "plate 'row' takes 4 of 6 rows, .* 2 of 6"),
        (twice, "counts 3 times by its plate and 3 times more"),
        (drawn_again, "'y' takes the rows that the plate 'row' draws, of 6"),
        (partial(series, size=60), "plate 'row' takes 2 of 60 rows, .* 2 of 6"),
        (partial(series, scale=N / B), "counts 3 times by its plate and 3 times more"),
        (partial(local_latents, scale=1.0), "latents of a batch .* 3 times, .* 'z'"),
    ],
)
def test_rows_of_another_number_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        check_batch_scale(model, (X[:B], Y[:B]), N, {})


def test_a_plate_of_more_rows_than_there_are_is_refused_on_all_of_them():
    with pytest.raises(ValueError, match=r"takes 6 of 60 rows, .* 6 of 6"):
        check_batch_scale(partial(on_a_plate, size=60), (X, Y), N, {})
    check_batch_scale(drawn_again, (X, Y), N, {})


def test_temperatures_are_told():
    tempered, weighted = one_of_two_tempered, partial(observe, scale=np.array([1, 2]))
    found = [check_batch_scale(m, (X[:B], Y[:B]), N, {}) for m in (tempered, weighted)]
    assert found[0] == pytest.approx({"y": 1.0, "other": 0.1})
    assert np.isnan(found[1]["y"])
