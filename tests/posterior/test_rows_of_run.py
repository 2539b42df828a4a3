"""LOO is for rows that a run has seen: which trees know it, and what is said then."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC, CompiledSVI, run_mcmc

KEY = jax.random.key(0)
X, NEW = jnp.linspace(0.1, 1.0, 8), jnp.linspace(1.0, 2.0, 8)
Y = 2.0 * X + 0.1 * jnp.sin(40.0 * X)


def model(x, y=None, *, scale=0.5):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(slope * jnp.asarray(x), scale), obs=y)


def run(mcmc, *args, **kwargs):
    mcmc.run(KEY, *args, **kwargs)
    return mcmc


def make(cls=CompiledMCMC, kernel=NUTS, own=model):
    return cls(kernel(own), num_warmup=100, num_samples=200, progress_bar=False)


@pytest.fixture(scope="module")
def mcmc():
    return run(make(), X, y=Y)


def loo(tree):
    diagnosis = px.diagnose(tree)
    [check] = [c for c in diagnosis.checks if c.name == "LOO of y"]
    return check, diagnosis


def test_rows_of_the_run_have_a_loo(mcmc):
    tree = px.to_datatree(mcmc, X, y=Y)
    assert tree.attrs["rows_of_run"] == 1
    check, diagnosis = loo(tree)
    assert "ELPD" in check.finding
    assert "calibration" not in str(diagnosis)


@pytest.mark.parametrize(
    ("x", "y"), [(NEW, 2.0 * NEW), (X, 2.0 * X), (NEW, Y), (X[:4], Y[:4])]
)
def test_other_rows_have_none(mcmc, x, y):
    tree = px.to_datatree(mcmc, x, y=y)
    assert tree.attrs["rows_of_run"] == 0
    check, diagnosis = loo(tree)
    assert check.passed is None
    assert check.finding.startswith("not computed")
    assert diagnosis.loo == {}
    assert "LOO of y" not in diagnosis.failed
    assert "judge held-out rows by `calibration`" in str(diagnosis)
    assert "note      LOO of y" in str(diagnosis)


def test_the_same_rows_in_another_form_are_the_same(mcmc):
    double = (1.0 + 1e-12) * np.asarray(X, np.float64), np.asarray(Y, np.float64)
    assert px.to_datatree(mcmc, double[0], y=double[1]).attrs["rows_of_run"] == 1
    assert px.to_datatree(mcmc, x=X, y=Y).attrs["rows_of_run"] == 1


def test_what_cannot_be_compared_is_not_known(mcmc):
    for tree in (
        px.to_datatree(mcmc, X, y=Y, scale=0.2),
        px.to_datatree(mcmc, list(map(float, X)), y=Y),
        px.to_datatree(mcmc, X, y=Y, model=lambda x, y=None: model(x, y)),
    ):
        assert "rows_of_run" not in tree.attrs
        assert "LOO is for rows that the fit has seen" in loo(tree)[0].finding


def test_a_model_that_holds_its_data_knows_them():
    held = run(make(own=lambda: model(X, Y)))
    assert px.to_datatree(held).attrs["rows_of_run"] == 1
    other = px.to_datatree(held, model=lambda: model(NEW, Y))
    assert "rows_of_run" not in other.attrs


def test_results_of_svi_state_the_condition():
    guide = AutoNormal(model)
    svi = CompiledSVI(model, guide, Adam(0.1), Trace_ELBO())
    fit = svi.run(KEY, 20, X, Y, progress_bar=False)
    tree = px.to_datatree(fit, NEW, Y, guide=guide, num_samples=40)
    assert "rows_of_run" not in tree.attrs
    assert "LOO is for rows that the fit has seen" in loo(tree)[0].finding


def test_trees_of_trees_know_it(mcmc, tmp_path):
    px.save(tmp_path / "run.nc", px.to_datatree(mcmc, X, y=Y))
    tree = px.load(tmp_path / "run.nc").posterior
    assert loo(tree)[1].loo.keys() == {"y"}
    same = px.to_datatree(tree, X, y=Y, model=model)
    new = px.to_datatree(tree, NEW, y=2.0 * NEW, model=model)
    assert (same.attrs["rows_of_run"], new.attrs["rows_of_run"]) == (1, 0)
    assert loo(new)[1].loo == {}
    back = px.to_datatree(new, X, y=Y, model=model)
    assert "rows_of_run" not in back.attrs
    draws = px.to_datatree({"slope": mcmc.get_samples()["slope"]}, X, y=Y, model=model)
    assert "rows_of_run" not in draws.attrs


@pytest.mark.slow
def test_a_later_run_decides(mcmc, tmp_path):
    again = run(make(MCMC), X, y=Y)
    run(again, NEW, y=Y)
    assert px.to_datatree(again, X, y=Y).attrs["rows_of_run"] == 0
    assert px.to_datatree(again, NEW, y=Y).attrs["rows_of_run"] == 1
    resumable = run_mcmc(make(MCMC), KEY, X, y=Y, path=tmp_path / "run")
    assert px.to_datatree(resumable, X, y=Y).attrs["rows_of_run"] == 1
    assert px.to_datatree(resumable, NEW, y=Y).attrs["rows_of_run"] == 0
