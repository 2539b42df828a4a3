"""diagnose: functions are judged and not weights; each check against ArviZ's own."""

import arviz_stats
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import xarray as xr

import pyrox_ppl as px
from pyrox_ppl.posterior._check_guide import check_guide

KEY = jax.random.key(0)
CHAINS, DRAWS, WIDTH = 4, 300, 8
MLP = eqx.nn.MLP(1, 1, WIDTH, 1, activation=jnp.tanh, key=KEY)
PROBES = jnp.linspace(-1.0, 1.0, 7)[:, None]


def chains_of_one_function(broken=False):
    """Draws about one network, its units in another order and sign in every chain."""
    rng = np.random.default_rng(0)
    first, last = MLP.layers
    draws = {
        "mlp.layers.0.weight": [],
        "mlp.layers.0.bias": [],
        "mlp.layers.1.weight": [],
        "mlp.layers.1.bias": [],
    }
    for chain in range(CHAINS):
        order = rng.permutation(WIDTH)
        sign = rng.choice([-1.0, 1.0], WIDTH)
        scale = 2.0 if broken and chain == 3 else 1.0
        noise = [0.05 * rng.normal(size=(DRAWS, WIDTH)) for _ in range(3)]
        weight, bias = np.asarray(first.weight)[:, 0], np.asarray(first.bias)
        out = scale * np.asarray(last.weight)[0]
        values = [
            ((weight + noise[0])[:, order] * sign)[..., None],
            (bias + noise[1])[:, order] * sign,
            ((out + noise[2])[:, order] * sign)[:, None],
            np.asarray(last.bias) + 0.05 * rng.normal(size=(DRAWS, 1)),
        ]
        for name, value in zip(draws, values, strict=True):
            draws[name].append(np.float32(value))
    return px.to_datatree({n: np.stack(v) for n, v in draws.items()}, batch_ndims=2)


@pytest.fixture(scope="module")
def tree():
    return chains_of_one_function()


def test_function_space_clears_what_weight_space_condemns(tree):
    weights = arviz_stats.rhat(tree)
    assert max(float(v.max()) for v in weights.data_vars.values()) > 1.5
    diagnosis = px.diagnose(tree, MLP, PROBES)
    assert diagnosis.ok
    assert diagnosis.functions.rhat.max() < 1.01
    assert diagnosis.table["r_hat"].max() < 1.01
    assert "Verdict: all 3 checks" in str(diagnosis)


def test_a_chain_with_another_function_is_found():
    diagnosis = px.diagnose(chains_of_one_function(broken=True), MLP, PROBES)
    assert not diagnosis.ok
    assert "R-hat" in diagnosis.failed
    assert "NOT FINE  R-hat" in str(diagnosis)
    assert "the chains disagree on the function" in str(diagnosis)
    assert "not to be trusted" in str(diagnosis)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_statistics_are_arvizs_of_the_functions_values(tree, batch_size):
    ours = px.diagnose(tree, MLP, PROBES, batch_size=batch_size).functions
    modules = px.modules_from_draws(MLP, tree)
    values = eqx.filter_vmap(lambda net: jax.vmap(net)(PROBES))(modules)[..., 0]
    values = np.asarray(values, np.float64).reshape(CHAINS, DRAWS, -1)
    theirs = xr.DataArray(values, dims=("chain", "draw", "probe"))
    for mine, expected in (
        (ours.rhat, arviz_stats.rhat(theirs)),
        (ours.ess_bulk, arviz_stats.ess(theirs, method="bulk")),
        (ours.ess_tail, arviz_stats.ess(theirs, method="tail", prob=(0.05, 0.95))),
        (ours.mcse, arviz_stats.mcse(theirs)),
        (ours.std, values.std((0, 1))),
    ):
        np.testing.assert_allclose(mine, expected, rtol=0.02)


def test_a_models_deterministic_sites_are_functions_too(tree):
    def model(x):
        with px.bayesianize():
            net = px.bind(MLP, "mlp")
        numpyro.deterministic("f", jax.vmap(net)(x))

    of_model = px.diagnose(tree, model, PROBES).functions
    of_module = px.diagnose(tree, MLP, PROBES).functions
    np.testing.assert_allclose(of_model.rhat, of_module.rhat, rtol=1e-3)

    def noisy(x):
        with px.bayesianize():
            px.bind(MLP, "mlp")

    with pytest.raises(ValueError, match="no deterministic site to look at"):
        px.diagnose(tree, noisy, PROBES, sites=None)


def of_parts(inference="MCMC", **groups):
    """A tree of one scalar, with groups put together by hand."""
    rng = np.random.default_rng(1)
    tree = px.to_datatree({"a": rng.normal(size=(4, 200))}, batch_ndims=2)
    for name, values in groups.items():
        tree[name] = xr.DataTree(
            xr.Dataset({n: (("chain", "draw"), v) for n, v in values.items()})
        )
    tree.attrs["inference"] = inference
    return tree


def checks_of(tree):
    return {check.name: check for check in px.diagnose(tree).checks}


def test_divergences_and_the_energy_are_looked_at():
    rng = np.random.default_rng(0)
    energy = rng.normal(size=(4, 200))
    diverging = np.zeros((4, 200), bool)
    fine = of_parts(sample_stats={"energy": energy, "diverging": diverging})
    assert checks_of(fine)["E-BFMI"].passed
    assert checks_of(fine)["divergences"].passed
    np.testing.assert_allclose(
        px.diagnose(fine).bfmi, arviz_stats.bfmi(fine)["energy"].values
    )
    diverging[2, 5] = True
    slow = of_parts(sample_stats={"energy": energy.cumsum(1), "diverging": diverging})
    assert checks_of(slow)["E-BFMI"].passed is False
    assert "1 of 800" in checks_of(slow)["divergences"].finding
    missing = checks_of(of_parts(sample_stats={"diverging": diverging}))["E-BFMI"]
    assert missing.passed is None
    assert "extra_fields" in missing.advice


@pytest.mark.parametrize(("df", "fine"), [(50, True), (1, False)])
def test_the_k_of_a_guide_is_that_of_its_weights(df, fine):
    # Weights of a normal guide for a posterior with tails of a t distribution.
    rng = np.random.default_rng(0)
    weights = rng.pareto(df, size=(1, 4000))
    tree = px.to_datatree({"a": rng.normal(size=(1, 4000))}, batch_ndims=2)
    tree["sample_stats"] = xr.DataTree(
        xr.Dataset({"log_weight": (("chain", "draw"), np.log(weights))})
    )
    tree.attrs["inference"] = "SVI"
    diagnosis = px.diagnose(tree)
    assert diagnosis.pareto_k == pytest.approx(1 / df, abs=0.25)
    assert (diagnosis.failed == ()) is fine
    assert not any(check.name == "R-hat" for check in diagnosis.checks)


def losses(values):
    tree = of_parts("SVI")
    tree["optimization"] = xr.DataTree(xr.Dataset({"loss": ("step", values)}))
    return checks_of(tree)["ELBO"]


def test_an_elbo_that_still_rises_is_told_from_one_that_stopped():
    noise = np.random.default_rng(0).normal(size=1000)
    assert losses(100 + 5 * noise).passed
    assert losses(100 + noise - 0.05 * np.arange(1000)).passed is False
    assert "step 700" in losses(np.where(np.arange(1000) < 700, noise, np.nan)).finding


def test_a_point_estimate_has_no_spread_to_diagnose():
    tree = of_parts("SVI")
    tree.attrs["point_estimate"] = 1
    assert px.diagnose(tree).checks[0].passed is None
    assert "nothing could be checked" in str(px.diagnose(tree))


def test_draws_that_do_not_move_are_not_fine():
    weight = MLP.layers[0].weight
    stuck = {"mlp.layers.0.weight": jnp.broadcast_to(weight, (2, 50, *weight.shape))}
    tree = px.to_datatree(stuck, batch_ndims=2)
    diagnosis = px.diagnose(tree, MLP, PROBES)
    assert diagnosis.failed == ("functions",)


def test_summary_has_a_row_for_every_group(tree):
    table = px.summary(tree)
    assert list(table.index) == list(tree.posterior.data_vars)
    weight = tree.posterior["mlp.layers.0.weight"].values
    rms = np.sqrt((weight**2).mean((2, 3)))
    row = table.loc["mlp.layers.0.weight"]
    assert row["size"] == WIDTH
    assert row["mean"] == pytest.approx(rms.mean(), abs=1e-3)
    assert row["sd"] == pytest.approx(rms.std(), abs=1e-3)
    scalar = px.summary(of_parts()).loc["a"]
    assert scalar["of"] == "value"
    with pytest.raises(ValueError, match=r"no variables \['b'\]"):
        px.summary(tree, ["b"])


def test_one_draw_is_too_few_and_not_a_function_that_stands_still():
    linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    tree = px.to_datatree({"linear.weight": jnp.ones((1, 1, 1))})
    found = px.diagnose(tree, linear, jnp.ones((2, 1)))
    assert [check.name for check in found.checks] == ["R-hat"]
    assert found.checks[0].passed is None


@pytest.mark.parametrize("gap", [100.0, 120.0, 150.0])
def test_a_guide_of_which_one_weight_dwarfs_the_rest_is_not_fine(gap):
    """ArviZ's own k is 117, then 0.28 where its fit overflows, then NaN."""
    weights = -gap * np.arange(40.0)
    check, k = check_guide(xr.Dataset({"log_weight": ("draw", weights)}), 1)
    assert not check.passed
    assert not k < 100


@pytest.mark.parametrize("gap", [100.0, 120.0, 150.0])
def test_an_observation_that_one_draw_alone_explains_has_a_high_k(gap):
    even = np.random.default_rng(0).normal(size=40)
    densities = np.stack([-gap * np.arange(40.0), np.tanh(even)], -1)[None]
    tree = px.to_datatree({"a": even[None]}, batch_ndims=2)
    groups = {
        "log_likelihood": (("chain", "draw", "row"), densities),
        "observed_data": ("row", np.zeros(2)),
    }
    for name, variable in groups.items():
        tree[name] = xr.DataTree(xr.Dataset({"y": variable}))
    diagnosis = px.diagnose(tree)
    k = diagnosis.loo["y"].pareto_k.values
    assert not k[0] < 100
    assert k[1] < 1
    assert " of 2 observations" in checks_of(tree)["LOO of y"].finding


@pytest.mark.parametrize(("kind", "has_tails"), [(float, True), (int, False)])
def test_heavier_tails_are_no_mend_for_a_class(kind, has_tails):
    densities = -100.0 * np.arange(40.0)[None, :, None] * np.ones(2)
    tree = px.to_datatree({"a": np.arange(40.0)[None]}, batch_ndims=2)
    tree["log_likelihood"] = xr.DataTree(
        xr.Dataset({"y": (("chain", "draw", "row"), densities)})
    )
    tree["observed_data"] = xr.DataTree(xr.Dataset({"y": ("row", np.zeros(2, kind))}))
    check = checks_of(tree)["LOO of y"]
    assert check.passed is False
    assert ("StudentT" in check.advice) is has_tails


def test_one_check_is_written_in_the_singular():
    assert "the one check of the draws that could be made is fine" in str(
        px.diagnose(of_a_guide(4, 1.0))
    )


def of_a_guide(dimensions, scale):
    """Draws of a normal guide whose scales are this share of a normal posterior's."""
    rng = np.random.default_rng(0)
    values = scale * rng.normal(size=(1, 1000, dimensions))
    weights = 0.5 * (values**2).sum(-1) * (1.0 / scale**2 - 1.0)
    tree = px.to_datatree({"w": values[0], "still": np.zeros((1000, 99))})
    tree["sample_stats"] = xr.DataTree(
        xr.Dataset({"log_weight": (("chain", "draw"), weights)})
    )
    tree.attrs["inference"] = "SVI"
    return tree


@pytest.mark.parametrize(
    ("dimensions", "scale", "passed"),
    [(1, 0.8, True), (30, 0.5, False), (31, 0.5, None), (300, 0.8, None)],
)
def test_a_large_k_over_many_dimensions_is_a_note(dimensions, scale, passed):
    """Only numbers that are drawn count; a point has no say in k."""
    diagnosis = px.diagnose(of_a_guide(dimensions, scale))
    [check] = diagnosis.checks
    assert check.passed is passed
    assert (diagnosis.pareto_k > 0.7) is (passed is not True)
    assert diagnosis.ok is (passed is not False)
    noted = "held-out rows decide (`calibration`), not the guide's PSIS k."
    assert str(diagnosis).endswith(noted) is (passed is None)
    assert ("not to be trusted" in str(diagnosis)) is (passed is False)
    assert not {"r_hat", "ess_bulk"} & set(diagnosis.table)


def test_a_small_k_over_many_dimensions_is_fine():
    assert px.diagnose(of_a_guide(200, 0.99)).checks[0].passed
