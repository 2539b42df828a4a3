"""Ensembles as trees: members are chains, their draws a mixture, no Markov chain."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import pyrox_ppl as px

mpl.use("agg")
pytestmark = pytest.mark.rank_promotion
X = jnp.linspace(-1.0, 1.0, 8)
Y = 0.5 * X
LOCS, SCALES = np.float32([-1.0, 0.0, 4.0]), np.float32([0.1, 0.5, 1.0])
OFFSETS = np.float32([0.0, 1.0, -1.0])
SAMPLES = 4000


class Fit(NamedTuple):
    """What any trainer may return: a fit whose losses have two axes."""

    params: dict[str, Any]
    losses: Any
    seconds: float = 2.5
    gradient_evaluations: int = 300


def model(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    offset = numpyro.param("offset", jnp.array(7.0))
    f = numpyro.deterministic("f", slope * x + offset)
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(f, 0.5), obs=y)


def guide(x, y=None):
    loc = numpyro.param("loc", jnp.array(9.0))
    scale = numpyro.param("scale", jnp.array(9.0), constraint=dist.constraints.positive)
    numpyro.sample("slope", dist.Normal(loc, scale))


def point(x, y=None):
    numpyro.sample("slope", dist.Delta(numpyro.param("loc", jnp.array(9.0))))


LOSSES = np.random.default_rng(0).normal(size=(3, 100))
FIT = Fit({"loc": LOCS, "scale": SCALES, "offset": OFFSETS}, LOSSES)
POINTS = Fit({"loc": LOCS, "offset": OFFSETS}, LOSSES)


def tree_of(fit, guide, **kwargs):
    return px.to_datatree(fit, X, y=Y, guide=guide, model=model, **kwargs)


@pytest.fixture(scope="module")
def mixture():
    return tree_of(FIT, guide, num_samples=SAMPLES)


@pytest.fixture(scope="module")
def points():
    return tree_of(POINTS, point, num_prior_samples=6)


def test_each_member_draws_from_its_own_guide(mixture):
    slopes = mixture.posterior["slope"].values
    assert slopes.shape == (3, SAMPLES)
    for draws, loc, scale in zip(slopes, LOCS, SCALES, strict=True):
        assert stats.kstest(draws, stats.norm(loc, scale).cdf).pvalue > 1e-3
    f = mixture.posterior["f"].values
    expected = slopes[..., None] * np.asarray(X) + OFFSETS[:, None, None]
    np.testing.assert_allclose(f, expected, atol=1e-5)


def test_predictions_are_the_moments_of_the_mixture(mixture):
    prediction = px.predict(model, mixture, X, progress_bar=False)["f"]
    means = LOCS[:, None] * np.asarray(X) + OFFSETS[:, None]
    within = SCALES[:, None] ** 2 * np.asarray(X) ** 2
    np.testing.assert_allclose(prediction.mean, means.mean(0), atol=0.05)
    variance = within.mean(0) + means.var(0)
    np.testing.assert_allclose(prediction.std**2, variance, rtol=0.05)
    one = px.predict(model, mixture.isel(chain=[2]), X, progress_bar=False)["f"]
    np.testing.assert_allclose(one.mean, means[2], atol=0.1)
    parts = mixture["uncertainty"]
    np.testing.assert_allclose(parts["y_epistemic"], variance, rtol=0.05)
    np.testing.assert_allclose(parts["y_aleatoric"], 0.25, rtol=1e-4)


def test_what_the_tree_holds(mixture, points):
    assert mixture.attrs["inference"] == "ensemble"
    assert mixture.attrs["members"] == 3
    assert mixture.attrs["seconds"] == 2.5
    assert mixture.attrs["gradient_evaluations"] == 300
    assert mixture.attrs["point_estimate"] == points.attrs["point_estimate"] == 0
    assert dict(points.posterior["slope"].sizes) == {"chain": 3, "draw": 1}
    assert mixture["optimization"]["loss"].dims == ("chain", "step")
    np.testing.assert_array_equal(mixture["params"]["offset"], OFFSETS)
    np.testing.assert_array_equal(mixture["guide_params"]["scale"], SCALES)
    assert "log_weight" not in mixture["sample_stats"]
    prior = points["prior"]
    offset = prior["f"].values[0] - prior["slope"].values[0][:, None] * np.asarray(X)
    np.testing.assert_allclose(offset[:, 0], np.tile(OFFSETS, 2), atol=1e-6)
    with pytest.raises(ValueError, match="neither this guide nor"):
        tree_of(FIT._replace(params=FIT.params | {"other": LOCS}), guide)


def test_members_are_judged_in_function_space(mixture, points, tmp_path):
    means = LOCS[:, None] * np.asarray(X) + OFFSETS[:, None]
    apart = np.sqrt(((means[:, None] - means[None]) ** 2).mean(-1))
    for tree, close in ((mixture, 0.1), (points, 1e-5)):
        diagnosis = px.diagnose(tree, model, X, loo=False)
        checks = {check.name: check for check in diagnosis.checks}
        assert list(checks) == ["members", "ELBO"]
        assert diagnosis.ok
        np.testing.assert_allclose(diagnosis.distances, apart, atol=close)
        assert "r_hat" not in px.summary(tree)
        titles = [axis.get_title() for axis in px.plot_diagnostics(diagnosis).axes]
        assert titles == ["distance of members", "loss of SVI"]
    assert "100 % of their variance" in checks["members"].finding
    assert "3 members of 1 draw\n" in str(diagnosis)
    px.save(tmp_path / "fit.zip", mixture)
    again = px.load(tmp_path / "fit.zip").posterior
    np.testing.assert_array_equal(
        px.diagnose(again, model, X, loo=False).distances,
        px.diagnose(mixture, model, X, loo=False).distances,
    )


def test_two_members_that_are_one_function_fail():
    same = {"loc": LOCS[[0, 1, 0]], "offset": OFFSETS[[0, 1, 0]]}
    diagnosis = px.diagnose(tree_of(Fit(same, LOSSES), point))
    assert diagnosis.failed == ("members",)
    assert "the same function: members 0 and 2" in str(diagnosis)


def test_the_loss_of_the_worst_member_counts():
    rising = LOSSES.copy()
    rising[1] += np.linspace(0.0, 100.0, 100)
    diagnosis = px.diagnose(tree_of(POINTS._replace(losses=rising), point))
    assert diagnosis.failed == ("ELBO",)


def test_a_member_that_is_infinite_fails():
    broken = {"loc": LOCS + np.float32([0, np.inf, 0]), "offset": OFFSETS}
    diagnosis = px.diagnose(tree_of(Fit(broken, LOSSES), point))
    assert set(diagnosis.failed) == {"finite draws", "functions"}


def test_draws_of_one_guide_are_no_ensemble():
    one = Fit({n: v[1] for n, v in FIT.params.items()}, LOSSES[1])
    tree = tree_of(one, guide, num_samples=50)
    assert tree.attrs["inference"] == "SVI"
    assert "members" not in tree.attrs
    assert tree["params"]["offset"].dims == ()
    names = [check.name for check in px.diagnose(tree, loo=False).checks]
    assert names == ["guide's PSIS k", "ELBO"]


def test_methods_are_compared_with_their_cost(mixture, points):
    comparison = px.compare({"mixture": mixture, "points": points})
    assert comparison.cost["points"]["gradient_evaluations"] == 300
    assert comparison.cost["mixture"]["seconds"] == 2.5
    densities = stats.norm.logpdf(
        np.asarray(Y), LOCS[:, None] * np.asarray(X) + OFFSETS[:, None], 0.5
    )
    expected = np.log(np.exp(densities.astype(np.float64)).mean(0)).sum()
    found = comparison.scores["elpd"].value["points"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_other_data_and_a_guide_of_some_samples(mixture):
    new = px.to_datatree(mixture.isel(draw=slice(5)), 2 * X, y=Y, model=model)
    slopes = new.posterior["slope"].values
    expected = slopes[..., None] * 2 * np.asarray(X) + OFFSETS[:, None, None]
    np.testing.assert_allclose(new.posterior["f"], expected, atol=1e-5)
    assert new.attrs["members"] == 3
    assert new.attrs["gradient_evaluations"] == 300
    fewer = px.to_datatree(mixture.isel(chain=[0, 2]), X, y=Y, model=model)
    assert fewer.attrs["members"] == 2
    assert dataclasses.is_dataclass(px.diagnose(fewer, loo=False))
