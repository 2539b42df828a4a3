"""Observations and distributions that broadcast each other are refused everywhere."""

import contextlib

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

import pyrox_ppl as px
from pyrox_ppl._observed_shapes import check_observed_shapes
from pyrox_ppl.infer import (
    AutoLaplace,
    CompiledMCMC,
    CompiledSVI,
    FlatNUTS,
    MinibatchLoader,
    run_ensemble,
    run_mcmc,
    run_minibatches,
    run_svi,
)

N = 6
KEY = jax.random.key(0)
ROWS, COLUMN = jnp.ones(N), jnp.ones((N, 1))
ROW, GROUP = ("row", N, -1), ("group", 4, -2)
PARALLEL = {"enumerate": "parallel"}


def check(fn, observed, plates=(), mask=None):
    def model():
        with contextlib.ExitStack() as stack:
            for name, size, dim in plates:
                stack.enter_context(numpyro.plate(name, size, dim=dim))
            if mask is not None:
                stack.enter_context(handlers.mask(mask=mask))
            numpyro.sample("y", fn, obs=observed)

    check_observed_shapes(model, (), {})


@pytest.mark.parametrize("plates", [(), (ROW,)], ids=["bare", "plate"])
@pytest.mark.parametrize(
    ("fn", "observed"),
    [
        (dist.Normal(COLUMN, 1.0), ROWS),
        (dist.Normal(ROWS, 1.0), COLUMN),
        (dist.Normal(COLUMN, 1.0).to_event(1), ROWS),
        (dist.Categorical(logits=jnp.ones((N, 1, 3))), jnp.ones(N, int)),
        (dist.Normal(ROWS, COLUMN), ROWS),
        (dist.Normal(COLUMN, 1.0).expand((N, N)), ROWS),
        (dist.Normal(ROWS, 1.0).mask(COLUMN > 0), ROWS),
        (dist.LeftCensoredDistribution(dist.Normal(ROWS, 1.0), COLUMN > 0), ROWS),
    ],
    ids=[
        "column of means",
        "column of observations",
        "event",
        "classes",
        "column of deviations",
        "expanded",
        "column of a mask",
        "column of censored",
    ],
)
def test_all_pairs_are_refused(fn, observed, plates):
    with pytest.raises(ValueError, match=r"'y' compares .* broadcast to \(6, 6\)"):
        check(fn, observed, plates)


@pytest.mark.parametrize("plates", [(), (ROW,)], ids=["bare", "plate"])
def test_a_mask_hides_nothing(plates):
    with pytest.raises(ValueError, match=r"its distribution \(6, 1\)"):
        check(dist.Normal(COLUMN, 1.0), ROWS, plates, jnp.ones(N, bool))


def test_a_plate_hides_no_column_of_observations():
    with pytest.raises(ValueError, match=r"its distribution \(6,\)"):
        check(dist.Normal(0.0, 1.0), COLUMN, (ROW,))


@pytest.mark.parametrize("plates", [(), (ROW,)], ids=["bare", "plate"])
def test_a_column_of_scales_is_refused(plates):
    def model(weights, y):
        with contextlib.ExitStack() as stack:
            for name, size, dim in plates:
                stack.enter_context(numpyro.plate(name, size, dim=dim))
            stack.enter_context(handlers.scale(scale=weights))
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"scale has shape \(6, 1\)"):
        check_observed_shapes(model, (COLUMN, ROWS), {})
    check_observed_shapes(model, (ROWS, ROWS), {})
    check_observed_shapes(model, (COLUMN, jnp.ones((N, N))), {})


@pytest.mark.parametrize(
    ("fn", "observed", "plates"),
    [
        (dist.Normal(0.0, 1.0), ROWS, ()),
        (dist.Normal(0.0, 1.0), ROWS, (ROW,)),
        (dist.Normal(ROWS, 1.0), 1.0, ()),
        (dist.Normal(ROWS, 1.0), jnp.ones(1), (ROW,)),
        (dist.Normal(COLUMN, 1.0), COLUMN, ()),
        (dist.Normal(COLUMN, 1.0).expand((N, N)), ROWS, (ROW, ("pair", N, -2))),
        (dist.Normal(COLUMN, 1.0), jnp.ones((N, N)), ()),
        (dist.Normal(jnp.ones((N, N)), 1.0).to_event(1), jnp.ones((N, N)), (ROW,)),
        (dist.MultivariateNormal(jnp.ones((N, N)), jnp.eye(N)), ROWS, ()),
        (dist.Normal(jnp.ones((4, 1)), 1.0), ROWS, (ROW, GROUP)),
        (dist.MultivariateNormal(jnp.ones(3), jnp.eye(3)), jnp.ones((N, 3)), (ROW,)),
        (dist.Categorical(logits=jnp.ones((N, 3))), jnp.ones(N, int), (ROW,)),
    ],
)
def test_what_numpyro_broadcasts_on_purpose_stays(fn, observed, plates):
    check(fn, observed, plates)


@pytest.mark.parametrize("shape", [(), (4, 1)])
def test_steps_of_a_scan_are_checked_one_by_one(shape):
    def model(y):
        def step(carry, y):
            numpyro.sample("y", dist.Normal(jnp.ones(shape), 1.0), obs=y)
            return carry, None

        scan(step, 0.0, y)

    refused = pytest.raises(ValueError, match=r"its distribution \(4, 1\)")
    with refused if shape else contextlib.nullcontext():
        check_observed_shapes(model, (jnp.ones((7, 4)),), {})


def test_a_summed_out_site_is_no_axis_of_the_distribution():
    def model(y):
        with numpyro.plate("row", N):
            kind = numpyro.sample("kind", dist.Bernoulli(0.5), infer=PARALLEL)
            numpyro.sample("y", dist.Normal(jnp.array([-1.0, 1.0])[kind], 1.0), obs=y)

    check_observed_shapes(model, (ROWS,), {})


def model(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)


def svi(guide=AutoNormal, kind=SVI):
    return kind(model, guide(model), numpyro.optim.Adam(0.1), Trace_ELBO())


def mcmc(kind=CompiledMCMC, kernel=FlatNUTS):
    return kind(kernel(model), num_warmup=1, num_samples=1, progress_bar=False)


def add_curvature():
    guide = AutoLaplace(model, structure="full")
    handlers.seed(guide, 0)(ROWS, ROWS)
    guide.add_curvature({"slope_auto_loc": jnp.ones(())}, COLUMN, ROWS)


LOADER = MinibatchLoader((COLUMN, ROWS), N, rng_key=KEY)
RUNS = {
    "explain": lambda path: px.explain(model, COLUMN, ROWS),
    "to_datatree": lambda path: px.to_datatree(
        {"slope": jnp.ones(2)}, COLUMN, ROWS, model=model
    ),
    "CompiledSVI": lambda path: svi(kind=CompiledSVI).init(KEY, COLUMN, ROWS),
    "CompiledSVI, NumPyro's start": lambda path: svi(
        AutoDiagonalNormal, CompiledSVI
    ).init(KEY, COLUMN, ROWS),
    "CompiledMCMC": lambda path: mcmc().run(KEY, COLUMN, ROWS),
    "run_mcmc": lambda path: run_mcmc(mcmc(MCMC, NUTS), KEY, COLUMN, ROWS, path=path),
    "run_svi": lambda path: run_svi(svi(), KEY, 1, COLUMN, ROWS, path=path),
    "run_minibatches": lambda path: run_minibatches(svi(), KEY, LOADER, 1),
    "run_ensemble": lambda path: run_ensemble(svi(), KEY, 2, 1, COLUMN, ROWS),
    "run_ensemble, in turn": lambda path: run_ensemble(
        svi(AutoDiagonalNormal), KEY, 2, 1, COLUMN, ROWS
    ),
    "add_curvature": lambda path: add_curvature(),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_every_run_refuses(run, tmp_path):
    with pytest.raises(ValueError, match=r"'y' compares every observation"):
        run(tmp_path / "run")
