"""to_datatree: every group's shapes, dims and values, checked against the hand."""

import arviz_stats
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from models import make_film
from numpyro import handlers
from numpyro.infer import MCMC, NUTS

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC

GROUPS = [
    "posterior",
    "sample_stats",
    "posterior_predictive",
    "log_likelihood",
    "log_prior",
    "uncertainty",
    "observed_data",
    "constant_data",
]
H = np.linspace(-1.0, 1.0, 15).reshape(5, 3).astype(np.float32)
Z = np.array([0.5, 1.0], np.float32)
Y = np.tanh(H)
COUNTS = np.array([0, 1, 1, 3, 2])
FILM = make_film()
BIAS = "net.affine_modulation.generator.bias"


def model(h, z, power=1.0, y=None, counts=None):
    with handlers.scope(prefix="net", divider="/"), px.bayesianize(prior_std=0.5):
        mean = FILM(h, z)
    rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.5))
    numpyro.deterministic("energy", (mean**2).sum())
    numpyro.factor("regulariser", -0.1 * rate)
    with numpyro.plate("row", h.shape[0]):
        shift = numpyro.sample("shift", dist.Normal(0.0, 0.1))
        likelihood = dist.Normal(mean * power + shift[:, None], 0.3)
        numpyro.sample("y", likelihood.to_event(1), obs=y)
        numpyro.sample("counts", dist.Poisson(rate), obs=counts)


SETTINGS = {"num_warmup": 30, "num_samples": 20, "num_chains": 2, "progress_bar": False}


@pytest.fixture(scope="module")
def mcmc():
    mcmc = MCMC(NUTS(model), chain_method="vectorized", **SETTINGS)
    fields = ("potential_energy", "num_steps", "energy")
    mcmc.run(jax.random.key(0), H, Z, y=Y, counts=COUNTS, extra_fields=fields)
    return mcmc


@pytest.fixture(scope="module")
def tree(mcmc):
    return px.to_datatree(mcmc, H, Z, y=Y, counts=COUNTS)


def test_the_groups_are_there_and_chain_and_draw_lead(tree):
    assert isinstance(tree, xr.DataTree)
    assert list(tree.children) == GROUPS
    for group in GROUPS[:5]:
        for variable in tree[group].data_vars.values():
            assert variable.dims[:2] == ("chain", "draw")
            assert variable.shape[:2] == (2, 20)


def test_the_posterior_holds_the_draws(tree, mcmc):
    draws = mcmc.get_samples(group_by_chain=True)
    assert {name.replace("/", ".") for name in draws} == set(tree.posterior.data_vars)
    for name, values in draws.items():
        np.testing.assert_array_equal(tree.posterior[name.replace("/", ".")], values)


def test_a_slash_becomes_a_dot_and_the_name_is_kept(tree):
    assert tree.posterior[BIAS].attrs["numpyro_name"] == BIAS.replace("net.", "net/")
    assert "numpyro_name" not in tree.posterior["rate"].attrs


def test_an_axis_on_a_plate_has_its_name(tree):
    assert tree.posterior["shift"].dims == ("chain", "draw", "row")
    assert tree.posterior_predictive["y"].dims == ("chain", "draw", "row", "y_dim_1")
    assert tree.posterior_predictive["counts"].dims == ("chain", "draw", "row")
    assert tree.log_likelihood["y"].dims == ("chain", "draw", "row")
    assert tree.observed_data["y"].dims == ("row", "y_dim_1")
    generator = BIAS.removesuffix(".bias")
    assert tree.posterior[BIAS].dims == ("chain", "draw", f"{generator}.out")
    weight = tree.posterior[f"{generator}.weight"]
    assert weight.dims[2:] == (f"{generator}.out", f"{generator}.in")
    assert weight.attrs["parameter"] == "generator.weight"
    assert tree.posterior["energy"].dims == ("chain", "draw")


def latents(tree):
    return {
        values.attrs.get("numpyro_name", name): values.values
        for name, values in tree.posterior.data_vars.items()
        if name != "energy"
    }


def normal(value, mean, std):
    return -0.5 * ((value - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))


def hand_log_likelihood(draw):
    weight = draw["net/affine_modulation.generator.weight"]
    out = weight @ Z + draw["net/affine_modulation.generator.bias"]
    mean = (1 + np.tanh(out[3:])) * H + out[:3]
    of_y = normal(Y, mean + draw["shift"][:, None], 0.3).sum(-1)
    factorial = np.array([1, 1, 1, 6, 2])
    of_counts = COUNTS * np.log(draw["rate"]) - draw["rate"] - np.log(factorial)
    return of_y, of_counts


def test_the_log_likelihood_is_that_by_hand_and_counts_no_factor(tree):
    assert set(tree.log_likelihood.data_vars) == {"y", "counts"}
    for chain, index in ((0, 0), (1, 7), (1, 19)):
        draw = {name: values[chain, index] for name, values in latents(tree).items()}
        of_y, of_counts = hand_log_likelihood(draw)
        ours = tree.log_likelihood.isel(chain=chain, draw=index)
        np.testing.assert_allclose(ours["y"], of_y, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours["counts"], of_counts, rtol=1e-4, atol=1e-4)


def hand_lp(draw):
    """The log joint density with the Jacobian of rate = exp(u): u ~ Normal(0, 0.5)."""
    lp = sum(of.sum() for of in hand_log_likelihood(draw))
    lp += normal(np.log(draw["rate"]), 0.0, 0.5) - 0.1 * draw["rate"]
    lp += normal(draw["shift"], 0.0, 0.1).sum()
    for leaf in ("weight", "bias"):
        value = draw[f"net/affine_modulation.generator.{leaf}"]
        lp += normal(value, 0.0, 0.5).sum()
    return lp


def test_lp_is_the_log_density_by_hand_with_its_sign(tree, mcmc):
    fields = mcmc.get_extra_fields(group_by_chain=True)
    np.testing.assert_array_equal(tree.sample_stats["lp"], -fields["potential_energy"])
    assert "potential_energy" not in tree.sample_stats
    for chain, index in ((0, 3), (1, 11)):
        draw = {name: values[chain, index] for name, values in latents(tree).items()}
        lp = float(tree.sample_stats["lp"][chain, index])
        assert lp == pytest.approx(hand_lp(draw), rel=1e-4)


def test_lp_is_computed_where_it_was_not_collected():
    def model(counts):
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.5))
        numpyro.factor("regulariser", -0.1 * rate)
        with numpyro.plate("row", 5):
            numpyro.sample("counts", dist.Poisson(rate), obs=counts)

    mcmc = CompiledMCMC(NUTS(model), chain_method="sequential", **SETTINGS)
    mcmc.run(jax.random.key(0), COUNTS)
    ours = px.to_datatree(mcmc, COUNTS)
    assert set(ours.sample_stats.data_vars) == {"lp", "diverging"}
    rate = np.float64(ours.posterior["rate"].values)
    expected = COUNTS.sum() * np.log(rate) - 5 * rate - np.log(6 * 2)
    expected += normal(np.log(rate), 0.0, 0.5) - 0.1 * rate
    np.testing.assert_allclose(ours.sample_stats["lp"], expected, rtol=1e-4)


def test_sample_stats_have_arvizs_names(tree, mcmc):
    fields = mcmc.get_extra_fields(group_by_chain=True)
    stats = tree.sample_stats
    expected = {"lp", "diverging", "n_steps", "tree_depth", "energy"}
    assert set(stats.data_vars) == expected
    np.testing.assert_array_equal(stats["n_steps"], fields["num_steps"])
    depth = stats["tree_depth"].values
    assert (stats["n_steps"].values <= 2**depth - 1).all()
    assert (stats["n_steps"].values > 2 ** (depth - 1) - 1).all()
    assert stats["diverging"].dtype == bool


def test_the_predictive_draws_follow_their_distribution(tree):
    mean = np.empty((2, 20, 5, 3))
    for chain in range(2):
        for index in range(20):
            draw = {name: v[chain, index] for name, v in latents(tree).items()}
            weight = draw["net/affine_modulation.generator.weight"]
            out = weight @ Z + draw["net/affine_modulation.generator.bias"]
            mean[chain, index] = (1 + np.tanh(out[3:])) * H + out[:3]
            mean[chain, index] += draw["shift"][:, None]
    noise = (tree.posterior_predictive["y"].values - mean) / 0.3
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    counts = tree.posterior_predictive["counts"].values
    assert np.issubdtype(counts.dtype, np.integer)
    assert len(np.unique(counts[..., 0])) > 1


def test_observed_and_constant_data_are_told_apart(tree):
    assert set(tree.observed_data.data_vars) == {"y", "counts"}
    np.testing.assert_array_equal(tree.observed_data["y"], Y)
    assert set(tree.constant_data.data_vars) == {"h", "z"}
    np.testing.assert_array_equal(tree.constant_data["h"], H)


def test_the_predictive_key_is_explicit_and_repeatable(mcmc, tree):
    again = px.to_datatree(mcmc, H, Z, y=Y, counts=COUNTS)
    xr.testing.assert_equal(
        again.posterior_predictive.to_dataset(), tree.posterior_predictive.to_dataset()
    )
    other = px.to_datatree(mcmc, H, Z, y=Y, counts=COUNTS, rng_key=jax.random.key(1))
    ours, theirs = tree.posterior_predictive["y"], other.posterior_predictive["y"]
    assert not np.allclose(ours, theirs)


# Other versions of JAX draw other numbers, and with so few PSIS may doubt one of them.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_arviz_runs_on_it(tree):
    assert float(arviz_stats.rhat(tree)["rate"]) < 1.5
    assert float(arviz_stats.ess(tree)["rate"]) > 3
    assert np.isfinite(arviz_stats.loo(tree, var_name="counts").elpd)
    assert len(arviz_stats.summary(tree, var_names=["rate", "shift"])) == 6


def test_it_goes_to_netcdf_and_back(tree, tmp_path):
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as back:
        for group in GROUPS:
            xr.testing.assert_equal(back[group].to_dataset(), tree[group].to_dataset())


def test_other_arguments_than_those_of_the_run_are_refused(mcmc):
    with pytest.raises(ValueError, match=r"\['counts', 'y'\].*arguments of mcmc\.run"):
        px.to_datatree(mcmc, H, Z)
