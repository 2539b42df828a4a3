"""What is NaN or infinite is never fine: draws, functions, weights and scores."""

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import pyrox_ppl as px

matplotlib.use("agg")
RNG = np.random.default_rng(0)
DRAWS = RNG.normal(size=(4, 300))
X = jnp.array([0.5, 100.0])


class Scale(eqx.Module):
    weight: jax.Array
    kind: str = eqx.field(static=True, default="product")

    def __call__(self, x):
        match self.kind:
            case "nan":  # at the first probe, in about a third of the draws
                return jnp.log(self.weight + x)
            case "infinite":
                return jnp.where(self.weight > 1.5, jnp.inf, self.weight) * x
            case "always":
                return jnp.where(x > 50, -jnp.inf, self.weight)
            case "wave":
                return jnp.exp(1j * self.weight) * x
            case "whole":
                return jnp.where(self.weight > 0, 1, 0) + jnp.zeros_like(x, int)
        return self.weight * x


def module(kind="product"):
    return Scale(jnp.zeros(()), kind)


def tree_of(draws, **groups):
    """Draws of the weight, with groups of one variable put together by hand."""
    tree = px.to_datatree({"scale.weight": draws}, batch_ndims=2)
    for group, (name, values) in groups.items():
        dims = ("chain", "draw", "row")[: np.ndim(values)]
        tree[group] = xr.DataTree(xr.Dataset({name: (dims, values)}))
    return tree


def with_one(value, shape=DRAWS.shape):
    values = RNG.normal(size=shape)
    values.flat[3] = value
    return values


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("nan", (DRAWS < -0.5).mean()),
        ("infinite", (DRAWS > 1.5).mean()),
        ("always", 1.0),
    ],
)
def test_a_function_that_is_not_finite_is_not_fine(kind, share):
    for inference in ("MCMC", "draws", "SVI", "ensemble"):
        tree = tree_of(DRAWS)
        tree.attrs["inference"] = inference
        diagnosis = px.diagnose(tree, module(kind), X)
        assert diagnosis.failed == ("functions",)
        assert f"{100 * share:.3g} % of the draws" in str(diagnosis)
    np.testing.assert_allclose(
        px.diagnose(tree_of(DRAWS), module(kind), X).functions.not_finite.max(), share
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_draw_that_is_not_finite_is_not_fine(value):
    tree = tree_of(with_one(value))
    assert px.diagnose(tree).failed == ("finite draws",)
    assert px.diagnose(tree, module(), X).failed == ("finite draws", "functions")
    row = px.summary(tree).iloc[0]
    assert not np.isfinite(row["sd"])
    assert np.isnan(row["r_hat"])
    point = tree_of(np.full((1, 1), value))
    point.attrs |= {"inference": "SVI", "point_estimate": 1}
    assert "finite draws" in px.diagnose(point, module(), X).failed


@pytest.mark.parametrize("kind", ["wave", "whole"])
def test_complex_and_whole_numbers_are_functions(kind):
    diagnosis = px.diagnose(tree_of(DRAWS), module(kind), X)
    assert diagnosis.ok
    expected = {
        "wave": np.outer(X, [np.cos(DRAWS).std(), np.sin(DRAWS).std()]).ravel(),
        "whole": np.full(2, (DRAWS > 0).std()),
    }
    np.testing.assert_allclose(diagnosis.functions.std, expected[kind], rtol=1e-3)


def test_chains_that_are_stuck_apart_are_not_fine():
    stuck = np.repeat(np.arange(4.0)[:, None], 300, axis=1)
    assert "R-hat" in px.diagnose(tree_of(stuck), module(), X).failed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_guide_whose_weights_are_not_finite_is_not_fine(value):
    tree = tree_of(DRAWS[:1], sample_stats=("log_weight", with_one(value, (1, 300))))
    tree.attrs["inference"] = "SVI"
    diagnosis = px.diagnose(tree)
    assert diagnosis.failed == ("guide's PSIS k",)
    assert "1 of 300 draws" in str(diagnosis)


def test_an_energy_that_is_nan_is_not_fine_and_none_is_not_known():
    tree = tree_of(DRAWS, sample_stats=("energy", with_one(np.nan)))
    tree.attrs["inference"] = "MCMC"
    assert px.diagnose(tree).failed == ("finite draws", "E-BFMI")
    checks = {check.name: check for check in px.diagnose(tree).checks}
    assert checks["divergences"].passed is None
    constant = tree_of(DRAWS, sample_stats=("energy", np.ones(DRAWS.shape)))
    constant.attrs["inference"] = "MCMC"
    assert px.diagnose(constant).failed == ("E-BFMI",)


@pytest.mark.parametrize(("value", "of_draws"), [(np.nan, True), (-np.inf, False)])
def test_a_likelihood_that_is_not_finite_is_not_fine(value, of_draws):
    density = with_one(value, (*DRAWS.shape, 5))
    tree = tree_of(DRAWS, log_likelihood=("y", density))
    checks = {c.name: c for c in px.diagnose(tree, module(), X).checks}
    assert checks["LOO of y"].passed is False
    assert checks["LOO of y"].of_draws is of_draws
    assert "functions" in px.diagnose(tree).failed


def scored(observed=None, drawn=None, density=None):
    def model(y=None):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 10):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    tree = px.to_datatree({"mean": DRAWS[0]}, y=np.arange(10.0), model=model)
    for group, value in (
        ("observed_data", observed),
        ("posterior_predictive", drawn),
        ("log_likelihood", density),
    ):
        if value is not None:
            changed = tree[group].to_dataset().copy(deep=True)
            changed["y"].values[(0,) * changed["y"].ndim] = value
            tree[group] = xr.DataTree(changed)
    return tree


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_calibration_counts_nothing_that_is_no_number(value):
    for tree, what in (
        (scored(observed=value), "observations of 'y' are not finite.* 1 of 10 "),
        (scored(drawn=value), "predictive draws of 'y' are not finite.* 1 of 3000 "),
    ):
        for function in (px.calibration, px.plot_calibration):
            with pytest.raises(ValueError, match=what):
                function(tree)
    with pytest.raises(ValueError, match="log likelihood of 'y' is NaN for 1 of 3000"):
        px.calibration(scored(density=np.nan))
    assert "ELPD" in str(px.calibration(scored(density=-np.inf)))


def test_yes_and_no_are_scored_as_one_and_zero():
    def model(y=None):
        rate = numpyro.sample("rate", dist.Beta(1.0, 1.0))
        with numpyro.plate("row", 10):
            numpyro.sample("y", dist.Bernoulli(rate), obs=y)

    y = np.arange(10) < 5
    tree = px.to_datatree({"rate": np.full(2000, 0.3)}, y=y.astype(int), model=model)
    for name in ("observed_data", "posterior_predictive"):
        tree[name] = xr.DataTree(tree[name].to_dataset().astype(bool))
    brier = px.calibration(tree).brier
    np.testing.assert_allclose(brier, (y - 0.3) ** 2, atol=1e-6)


def test_pictures_leave_out_what_is_not_finite():
    losses = np.where(np.arange(100) < 50, np.linspace(9.0, 1.0, 100), np.inf)
    tree = tree_of(DRAWS)
    for loss in (losses, np.full(100, np.nan), np.stack([losses, losses])):
        dims = ("chain", "step")[-loss.ndim :]
        tree["optimization"] = xr.DataTree(xr.Dataset({"loss": (dims, loss)}))
        diagnosis = px.diagnose(tree, module("nan"), X)
        figure = px.plot_diagnostics(diagnosis)
        assert figure.get_suptitle().endswith("not fine: functions, ELBO")
    grid = np.argwhere(np.ones((4, 4))) / 3.0
    field = px.predict(module("nan"), {"scale.weight": DRAWS[0]}, jnp.asarray(grid))
    with pytest.raises(ValueError, match="NaN or infinite at 16 of 16 points"):
        px.plot_fit(field, grid)


def test_few_weights_are_not_judged():
    def model(y=None):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.0).expand([6]).to_event(1), obs=y)

    guide = AutoNormal(model)
    optim = numpyro.optim.Adam(0.05)
    svi = px.infer.CompiledSVI(model, guide, optim, Trace_ELBO())
    fit = svi.run(jax.random.key(0), 60, y=jnp.ones(6), progress_bar=False)
    for number, known in ((16, False), (40, True)):
        tree = px.to_datatree(fit, y=jnp.ones(6), guide=guide, num_samples=number)
        checks = {c.name: c for c in px.diagnose(tree, loo=False).checks}
        assert (checks["guide's PSIS k"].passed is not None) == known
