"""Where ArviZ's own converter of NumPyro's results errs silently, and this one not."""

import pickle
import warnings

import arviz_base
import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from battery import BATTERY, COUNTS, MASK, X, Y, with_param_guide
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.optim import Adam
from scipy import stats

import pyrox_ppl as px
from pyrox_ppl.prediction import _loop as loop

KEY = jax.random.key(0)


def test_draws_of_a_matrix_are_one_chain_and_not_a_chain_per_draw():
    draws = {"w": jax.random.normal(KEY, (50, 8, 4)), "s": jnp.ones(50)}
    with pytest.warns(UserWarning, match="chain dimension"):
        theirs = arviz_base.from_dict({"prior": {"w": np.asarray(draws["w"])}})
    assert theirs["prior"].sizes["chain"] == 50  # what is made of them there
    ours = px.to_datatree(draws).posterior
    assert dict(ours.sizes) == {"chain": 1, "draw": 50, "w_dim_0": 8, "w_dim_1": 4}
    np.testing.assert_array_equal(ours["w"].values[0], draws["w"])
    assert not np.isnan(ours["s"].values).any()


@pytest.fixture(scope="module")
def trained():
    """A model with a param site, far from where it started."""
    entry = BATTERY["param"]
    svi = SVI(entry.model, with_param_guide, Adam(0.1), Trace_ELBO())
    fit = svi.run(KEY, 300, X, y=Y, progress_bar=False)
    assert abs(float(fit.params["offset"]) - 5.0) > 4.0
    tree = px.to_datatree(
        fit,
        X,
        y=Y,
        guide=with_param_guide,
        model=entry.model,
        num_samples=30,
        num_prior_samples=20,
        predictions={"x": X},
        rng_key=KEY,
    )
    return fit, tree


def test_the_log_likelihood_is_that_of_the_trained_params(trained):
    fit, tree = trained
    slope = tree.posterior["slope"].values[0, :, None]
    mean = slope * np.asarray(X)[:, 0] + float(fit.params["offset"])
    by_hand = stats.norm.logpdf(np.asarray(Y), mean, 0.5)
    np.testing.assert_allclose(tree.log_likelihood["y"][0], by_hand, rtol=1e-4)
    untrained = log_likelihood(
        numpyro.handlers.seed(BATTERY["param"].model, 0),
        {"slope": tree.posterior["slope"].values[0]},
        X,
        y=Y,
    )["y"]
    assert np.abs(np.asarray(untrained) - by_hand).min() > 5  # what it would be


def test_every_group_stands_on_one_set_of_draws_with_trained_params(trained):
    fit, tree = trained
    model = BATTERY["param"].model
    predictive = Predictive(
        model, guide=with_param_guide, params=fit.params, num_samples=30
    )
    _, guide_key = jax.random.split(KEY)
    guide = numpyro.handlers.substitute(with_param_guide, data=fit.params)
    slopes = [
        numpyro.handlers.trace(numpyro.handlers.seed(guide, k)).get_trace(X)["slope"]
        for k in jax.random.split(guide_key, 30)
    ]
    expected = np.array([site["value"] for site in slopes])
    np.testing.assert_allclose(tree.posterior["slope"][0], expected, rtol=1e-4)
    y = predictive(KEY, X)["y"]
    np.testing.assert_allclose(tree.posterior_predictive["y"][0], y, rtol=1e-4)
    offset = float(fit.params["offset"])
    for group in ("prior_predictive", "predictions"):
        assert abs(float(tree[group]["y"].mean()) - offset) < 0.6, group
    assert float(tree.params["offset"]) == offset
    assert set(tree.guide_params.data_vars) == {"loc", "scale"}
    assert tree.prior["slope"].shape == (1, 20)
    assert tree.predictions_constant_data["x"].shape == X.shape


def test_arviz_runs_on_the_result_of_svi(trained):
    tree = trained[1]
    assert len(arviz_stats.summary(tree, var_names=["slope"])) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 30 draws: of a high Pareto k
        assert np.isfinite(arviz_stats.loo(tree, var_name="y").elpd)
    assert tree.optimization["loss"].shape == (300,)


def test_a_subsampled_plate_has_all_of_its_data():
    draws = {"slope": jnp.linspace(-1.0, 1.0, 9)}
    entry = BATTERY["subsampled"]
    tree = px.to_datatree(draws, X, y=Y, model=entry.model)
    np.testing.assert_array_equal(tree.observed_data["y"], Y)
    assert tree.log_likelihood["y"].sizes["row"] == len(Y)
    # Nor is the log density scaled up from a minibatch.
    slope = tree.posterior["slope"].values[0]
    by_hand = stats.norm.logpdf(slope) + tree.log_likelihood["y"].values[0].sum(-1)
    np.testing.assert_allclose(tree.sample_stats["lp"][0], by_hand, rtol=1e-5)
    np.testing.assert_allclose(
        tree.log_prior["slope"][0], stats.norm.logpdf(slope), rtol=1e-5
    )


def test_a_factor_counts_nowhere_but_in_lp():
    draws = {"rate": jnp.linspace(0.5, 2.0, 9)}
    entry = BATTERY["several"]
    tree = px.to_datatree(draws, model=entry.model, **entry.kwargs)
    for group in ("log_likelihood", "observed_data", "posterior_predictive"):
        assert set(tree[group].data_vars) == {"y", "counts"}
    np.testing.assert_array_equal(tree.observed_data["counts"], COUNTS)
    one = {"rate": float(draws["rate"][3])}
    lp = stats.norm.logpdf(np.log(one["rate"]), 0.0, 0.5) - 0.1 * one["rate"]
    lp += sum(v.sum() for v in entry.by_hand(one).values())
    assert float(tree.sample_stats["lp"][0, 3]) == pytest.approx(lp, rel=1e-4)


def test_what_a_mask_hides_is_in_no_group_and_the_places_are_kept():
    draws = {"slope": jnp.linspace(-1.0, 1.0, 40)}
    tree = px.to_datatree(draws, X, y=Y, model=BATTERY["masked"].model)
    places = np.flatnonzero(MASK)
    for group in ("observed_data", "log_likelihood", "posterior_predictive"):
        np.testing.assert_array_equal(tree[group]["y_row"], places)
    np.testing.assert_array_equal(tree.observed_data["y"], np.asarray(Y)[MASK])
    assert arviz_stats.loo(tree, var_name="y").n_data_points == MASK.sum()


def test_importance_weights_are_in_float64():
    x = jnp.linspace(-1.0, 1.0, 20_000)
    y = 1000.0 + 3 * x

    def model(x, y=None):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    fit = {"loc": jnp.array(3.0), "scale": jnp.array(0.01)}
    tree = px.to_datatree(
        fit, x, y=y, guide=with_param_guide, model=model, num_samples=5
    )
    slope = tree.posterior["slope"].values[0]
    # The model computes its mean in its own dtype.
    mean = (slope[:, None] * np.asarray(x)).astype(np.float64)
    slope = slope.astype(np.float64)
    by_hand = stats.norm.logpdf(np.asarray(y, np.float64), mean, 1.0).sum(-1)
    by_hand += stats.norm.logpdf(slope)
    by_hand -= stats.norm.logpdf(slope, 3.0, np.float64(np.float32(0.01)))
    assert tree.sample_stats["log_weight"].dtype == np.float64
    ours = tree.sample_stats["log_weight"].values[0]
    assert np.abs(by_hand).min() > 1e9  # float32 resolves no better than 64 here
    np.testing.assert_allclose(ours - ours[0], by_hand - by_hand[0], atol=1e-3)


def test_the_log_likelihood_in_chunks_is_numpyros(monkeypatch):
    draws = {"slope": jnp.linspace(-1.0, 1.0, 11)}
    model = BATTERY["masked"].model
    monkeypatch.setattr(loop, "CHUNK_BYTES", 4 * 200)  # a few draws at a time
    tree = px.to_datatree(draws, X, y=Y, model=model)
    theirs = log_likelihood(model, draws, X, y=Y)["y"]
    np.testing.assert_allclose(
        tree.log_likelihood["y"][0], np.asarray(theirs)[:, MASK], rtol=1e-6
    )


def test_draws_are_appended_to_a_zarr_group(tmp_path):
    first = px.to_datatree({"a": jnp.arange(3.0)}).posterior.to_dataset()
    more = px.to_datatree({"a": jnp.arange(3.0, 5.0)}).posterior.to_dataset()
    options = {"group": "posterior", "consolidated": False}
    first.to_zarr(tmp_path / "a", mode="w", **options)
    more.to_zarr(tmp_path / "a", mode="a", append_dim="draw", **options)
    with xr.open_zarr(tmp_path / "a", **options) as back:
        assert back["a"].values.tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]]


@pytest.fixture(scope="module")
def steps():
    """A run in two steps with its warmup kept, and the same in one."""
    model = BATTERY["several"].model
    kwargs = BATTERY["several"].kwargs
    fields = ("potential_energy", "energy")
    mcmc = MCMC(NUTS(model), num_warmup=20, num_samples=10, progress_bar=False)
    mcmc.warmup(KEY, **kwargs, collect_warmup=True, extra_fields=fields)
    warm = px.to_datatree(mcmc, **kwargs)
    mcmc.run(mcmc.post_warmup_state.rng_key, **kwargs, extra_fields=fields)
    return mcmc, warm, px.to_datatree(mcmc, **kwargs, warmup=warm)


def test_a_collected_warmup_is_never_taken_for_the_posterior(steps):
    _, warm, tree = steps
    assert list(warm.children) == ["warmup_posterior", "warmup_sample_stats"]
    assert warm.warmup_posterior["rate"].shape == (1, 20)
    assert {"lp", "energy"} <= set(warm.warmup_sample_stats.data_vars)
    assert tree.posterior["rate"].shape == (1, 10)
    xr.testing.assert_equal(
        tree.warmup_posterior.to_dataset(), warm.warmup_posterior.to_dataset()
    )


def test_a_resumed_run_is_a_run(steps):
    mcmc, _, before = steps
    kwargs = BATTERY["several"].kwargs
    mcmc.post_warmup_state = pickle.loads(pickle.dumps(mcmc.last_state))
    assert "posterior" in px.to_datatree(mcmc, **kwargs).children  # not a warmup
    mcmc.run(mcmc.post_warmup_state.rng_key, **kwargs)
    tree = px.to_datatree(mcmc, **kwargs)
    np.testing.assert_array_equal(
        tree.posterior["rate"], mcmc.get_samples(group_by_chain=True)["rate"]
    )
    assert not np.array_equal(tree.posterior["rate"], before.posterior["rate"])
