"""Runs on minibatches refuse a batch that counts as all of the data."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from pyrox_ppl.infer import MinibatchLoader, run_ensemble, run_minibatches

N, B = 6, 2
KEY = jax.random.key(0)
X, Y = np.arange(6.0, dtype=np.float32), np.ones(6, np.float32)


def observe(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def plate_of_rows(x):
    return numpyro.plate("row", N, subsample_size=len(x), dim=-2)


def test_a_model_may_draw_parts_of_the_rows_that_it_is_given():
    def model(x):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with plate_of_rows(x), numpyro.plate("reading", 9, 2, dim=-1) as readings:
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=x[:, readings])

    svi = SVI(model, AutoNormal(model), numpyro.optim.Adam(0.1), Trace_ELBO())
    loader = MinibatchLoader((np.ones((N, 9)),), B, rng_key=KEY)
    fit = run_minibatches(svi, KEY, loader, 1, progress_bar=False)
    assert np.all(np.isfinite(fit.losses))


@pytest.mark.parametrize("run", [run_minibatches, run_ensemble])
def test_runs_with_a_loader_refuse(run):
    svi = SVI(observe, AutoNormal(observe), numpyro.optim.Adam(0.1), Trace_ELBO())
    loader = MinibatchLoader((X, Y), B, rng_key=KEY)
    sizes = (loader, 1) if run is run_minibatches else (2, 1, loader)
    with pytest.raises(ValueError, match="must count 3 times"):
        run(svi, KEY, *sizes)
