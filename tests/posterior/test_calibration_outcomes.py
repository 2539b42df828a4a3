"""calibration by the kind of outcome: against scikit-learn and scoringrules."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scoringrules
import xarray as xr
from sklearn import metrics

import pyrox_ppl as px

N, CLASSES = 60, 3
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=N), jnp.float32)
WEIGHTS = jax.random.normal(jax.random.key(0), (40, CLASSES))
LABELS = RNG.integers(0, CLASSES, N)
RAIN = RNG.integers(0, 2, N)
ORDERS = [np.array([0, 1, 2]), np.array([2, 0, 1])]


def classes(x, order, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([CLASSES]).to_event(1))
    with numpyro.plate("row", x.shape[0]):
        logits = jnp.outer(x, w)[:, order]
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)


@functools.cache
def made(place):
    labels = np.argsort(ORDERS[place])[LABELS]
    return px.to_datatree({"w": WEIGHTS}, X, ORDERS[place], y=labels, model=classes)


def tree_of(place):
    """The tree under one numbering of the classes: a copy, which may be changed."""
    return made(place).copy()


def probabilities():
    logits = np.einsum("n,sk->snk", np.asarray(X), np.asarray(WEIGHTS, np.float64))
    p = np.exp(logits)
    return (p / p.sum(-1, keepdims=True)).mean(0)


@pytest.fixture(scope="module", params=[0, 1])
def found(request):
    """The same predictions, under two numberings of the classes."""
    return px.calibration(tree_of(request.param))


def test_classes_are_scored_as_scikit_learn_scores_them(found):
    p = probabilities()
    assert isinstance(found, px.ClassCalibration)
    assert found.outcome == "categorical"
    accuracy = metrics.accuracy_score(LABELS, p.argmax(-1))
    assert found.accuracy == pytest.approx(accuracy)
    one_hot = np.eye(CLASSES)[LABELS]
    np.testing.assert_allclose(found.brier, ((p - one_hot) ** 2).sum(-1), rtol=1e-4)
    loss = metrics.log_loss(LABELS, p, labels=range(CLASSES))
    assert found.elpd == pytest.approx(-N * loss, rel=1e-4)
    log_p = np.log(p[np.arange(N), LABELS])
    assert found.elpd_se == pytest.approx(np.sqrt(N) * log_p.std(), rel=1e-4)
    assert found.reliability.count.sum() == N
    best = p.max(-1)
    bins = np.digitize(best, np.linspace(0, 1, 16)[1:-1], right=True)
    right = p.argmax(-1) == LABELS
    gaps = [abs((best - right)[bins == b].sum()) for b in range(15)]
    assert found.calibration_error.value == pytest.approx(sum(gaps) / N, rel=1e-4)
    assert found.rps is None


def test_classes_have_no_numbers(found):
    for name in ("crps", "coverage", "pit", "levels", "energy_score"):
        with pytest.raises(
            AttributeError,
            match=rf"no '{name}'; it has accuracy, confidence, direction, bri",
        ):
            getattr(found, name)
    assert not hasattr(found, "crps")
    assert pickle.loads(pickle.dumps(found)).accuracy == found.accuracy
    with pytest.raises(ValueError, match="'y' is categorical: it has no intervals"):
        px.calibration(tree_of(0), levels=(0.9,))
    text = str(found)
    assert "y (categorical): 60 observations" in text
    assert "15 bins of equal width" in text
    assert "CRPS" not in text


def test_the_bins_are_those_asked_for():
    tree = tree_of(0)
    found = px.calibration(tree, bins=4, binning="equal_mass")
    assert found.reliability.count.tolist() == [15, 15, 15, 15]
    assert "4 bins of equal mass" in str(found)
    with pytest.raises(ValueError, match="at least one bin, got bins=0"):
        px.calibration(tree, bins=0)


def mixed(x, mask, **observed):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([CLASSES]).to_event(1))
    f = x * w[0]
    laws = {
        "rain": dist.Bernoulli(logits=f),
        "pixels": dist.Bernoulli(logits=jnp.outer(x, w)).to_event(1),
        "grade": dist.OrderedLogistic(f, jnp.array([-1.0, 1.0])).mask(mask),
        "count": dist.Binomial(1, logits=f),
        "vector": dist.MultivariateNormal(jnp.outer(x, w), jnp.eye(CLASSES)),
        "angle": dist.VonMises(f, 1.0),
        "height": dist.Normal(f, 1.0),
    }
    with numpyro.plate("row", x.shape[0]):
        for name, law in laws.items():
            numpyro.sample(name, law, obs=observed.get(name))


MASK = RNG.uniform(size=N) < 0.7
OBSERVED = {
    "rain": RAIN,
    "pixels": RNG.integers(0, 2, (N, CLASSES)),
    "grade": np.where(MASK, LABELS, 0),
    "count": RAIN,
    "vector": RNG.normal(size=(N, CLASSES)),
    "angle": RNG.uniform(-3.0, 3.0, N),
    "height": RNG.normal(size=N),
}


@pytest.fixture(scope="module")
def several():
    with jax.numpy_rank_promotion("allow"):  # VonMises promotes when it samples
        return px.to_datatree({"w": WEIGHTS}, X, MASK, model=mixed, **OBSERVED)


def test_sites_of_several_kinds_are_each_judged_by_their_own(several):
    with pytest.raises(ValueError, match=r"the observed sites .*: choose one"):
        px.calibration(several)
    kinds = {name: px.calibration(several, name).outcome for name in OBSERVED}
    assert kinds == {
        "rain": "binary",
        "pixels": "binary",
        "grade": "categorical",
        "count": "count",
        "vector": "multivariate",
        "angle": "circular",
        "height": "continuous",
    }


def test_a_binary_outcome_is_scored_by_the_probability_of_one(several):
    w = np.asarray(WEIGHTS, np.float64)
    p = (1 / (1 + np.exp(-np.einsum("n,sk->snk", X, w)))).mean(0)
    for name, p_one in (("rain", p[:, 0]), ("pixels", p)):
        found, y = px.calibration(several, name), OBSERVED[name]
        np.testing.assert_allclose(found.brier, (p_one - y) ** 2, rtol=1e-4)
        brier = metrics.brier_score_loss(y.ravel(), p_one.ravel())
        assert found.brier.mean() == pytest.approx(brier, rel=1e-4)
        accuracy = metrics.accuracy_score(y.ravel(), p_one.ravel() > 0.5)
        assert found.accuracy == pytest.approx(accuracy)
        assert found.reliability.count.sum() == y.size


def test_ordered_classes_have_a_ranked_score_of_the_entries_that_no_mask_hides(several):
    found = px.calibration(several, "grade")
    f = np.outer(np.asarray(WEIGHTS[:, 0], np.float64), X)
    cumulative = 1 / (1 + np.exp(-(np.array([-1.0, 1.0]) - f[..., None])))
    p = np.diff(cumulative, axis=-1, prepend=0, append=1).mean(0)[MASK]
    np.testing.assert_allclose(
        found.rps, scoringrules.rps_score(LABELS[MASK] + 1, p), rtol=1e-4
    )
    assert found.brier.shape == (MASK.sum(),)
    assert "ranked probability score" in str(found)


def test_a_count_is_a_number(several):
    found = px.calibration(several, "count", levels=(0.9,))
    drawn = several.posterior_predictive["count"].values[0].T
    crps = scoringrules.crps_ensemble(RAIN, drawn, estimator="nrg")
    np.testing.assert_allclose(found.crps, crps, atol=1e-6)
    with pytest.raises(AttributeError, match="has no 'brier'; it has levels, coverage"):
        _ = found.brier
    with pytest.raises(ValueError, match="'count' is count: bins are of class"):
        px.calibration(several, "count", bins=3)


def test_vectors_have_an_energy_score_and_their_entries_the_rest(several):
    found = px.calibration(several, "vector")
    y = OBSERVED["vector"].astype(np.float32)
    drawn = np.moveaxis(several.posterior_predictive["vector"].values[0], 0, 1)
    by_hand = scoringrules.es_ensemble(y, drawn, estimator="nrg")
    np.testing.assert_allclose(found.energy_score, by_hand, rtol=1e-4)
    assert found.pit.shape == (N, CLASSES)
    lower, upper = np.quantile(drawn, [0.05, 0.95], axis=1)
    assert found.coverage[2] == pytest.approx(((lower <= y) & (y <= upper)).mean())
    assert "mean energy score" in str(found)


def test_angles_have_a_density_and_no_intervals(several):
    found = px.calibration(several, "angle")
    f = np.outer(WEIGHTS[:, 0], X)
    density = np.exp(np.cos(OBSERVED["angle"] - f)) / (2 * np.pi * np.i0(1.0))
    assert found.elpd == pytest.approx(np.log(density.mean(0)).sum(), rel=1e-4)
    for name in ("crps", "coverage", "pit"):
        with pytest.raises(
            AttributeError, match=f"angles, has no '{name}'; it has elp"
        ):
            getattr(found, name)
    with pytest.raises(ValueError, match="'angle' is circular: it has no intervals"):
        px.calibration(several, "angle", levels=(0.9,))


def foreign(several, *names):
    """The tree as someone else would have made it: arrays alone."""
    groups = {}
    for group in ("observed_data", "posterior_predictive"):
        data = several[group].to_dataset()[list(names)].drop_attrs()
        groups[group] = data
    return xr.DataTree.from_dict(groups)


def test_a_tree_that_does_not_say_what_integers_are_is_asked(several):
    tree = foreign(several, "rain")
    with pytest.raises(ValueError, match="counts or names of classes: pass outcome="):
        px.calibration(tree)
    found = px.calibration(tree, outcome="binary")
    p = several.posterior_predictive["rain"].values[0].mean(0)
    np.testing.assert_allclose(found.brier, (p - RAIN) ** 2, rtol=1e-6)
    many = px.calibration(tree, outcome="categorical")
    np.testing.assert_allclose(many.brier, 2 * found.brier, rtol=1e-6)
    assert many.elpd is None
    assert px.calibration(tree, outcome="count").crps.shape == (N,)
    assert px.calibration(foreign(several, "height")).outcome == "continuous"
    with pytest.raises(ValueError, match=r"outcome is one of .*, got 'label'"):
        px.calibration(tree, outcome="label")
    with pytest.raises(ValueError, match="the model says that 'rain' is binary"):
        px.calibration(several, "rain", outcome="count")


def test_probabilities_of_other_draws_or_rows_are_refused(several):
    groups = ("observed_data", "posterior_predictive", "uncertainty", "log_likelihood")
    data = {name: several[name].to_dataset() for name in groups}
    few = dict(data)
    few["posterior_predictive"] = few["posterior_predictive"].isel(draw=slice(10))
    with pytest.raises(ValueError, match="selected, resampled or joined"):
        px.calibration(xr.DataTree.from_dict(few), "rain")
    other = dict(data)
    other["uncertainty"] = other["uncertainty"].rename(row="other")
    with pytest.raises(ValueError, match="belong to different data"):
        px.calibration(xr.DataTree.from_dict(other), "rain")


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.full(N, 3), "labels must run from 0 to 2 for 3 classes, got 3 to 3"),
        (np.where(np.arange(N) == 4, np.nan, 0.0), "not finite.* at 1 of 60 values"),
        (np.full(N, 0.5), "labels must be class numbers, which are whole; got 0.5"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, match):
    tree = tree_of(0)
    observed = tree.observed_data.to_dataset()
    observed["y"] = observed["y"].copy(data=labels)
    tree["observed_data"] = xr.DataTree(observed)
    with pytest.raises(ValueError, match=match):
        px.calibration(tree)


def test_held_out_rows_of_a_saved_tree_are_judged_alike(tmp_path):
    tree = px.to_datatree({"w": WEIGHTS.reshape(2, 20, CLASSES)}, batch_ndims=2)
    tree = px.to_datatree(tree, X, ORDERS[0], y=LABELS, model=classes)
    px.save(tmp_path / "held_out.nc", tree)
    saved = px.calibration(px.load(tmp_path / "held_out.nc").posterior)
    found = px.calibration(tree_of(0))
    np.testing.assert_allclose(saved.brier, found.brier, rtol=1e-6)
    assert saved.elpd == pytest.approx(found.elpd, rel=1e-5)


@pytest.mark.parametrize("dtype", [bool, int, np.float32])
def test_whole_numbers_of_a_foreign_tree_are_not_taken_for_measurements(dtype):
    draws = RNG.integers(0, 2, (1, 40, N)).astype(dtype)
    data = {"observed_data": RAIN.astype(dtype), "posterior_predictive": draws}
    axes = {
        "observed_data": ("row",),
        "posterior_predictive": ("chain", "draw", "row"),
    }
    tree = xr.DataTree.from_dict(
        {name: xr.Dataset({"y": (axes[name], values)}) for name, values in data.items()}
    )
    with pytest.raises(ValueError, match="counts or names of classes"):
        px.calibration(tree)
    assert px.calibration(tree, outcome="binary").outcome == "binary"
