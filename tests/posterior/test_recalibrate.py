"""recalibrate: the guarantees of its corrections, and that a file keeps them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from mapie.regression import SplitConformalRegressor
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, RegressorMixin

import pyrox_ppl as px
from pyrox_ppl.posterior._saving import _RECALIBRATION

RNG = np.random.default_rng(0)
N = 300
X = np.float32(RNG.uniform(-2, 2, 3 * N))
SLOPES = {"slope": np.float32(RNG.normal(1.0, 0.1, 200))}
# The model has too little noise, and of one size.
NUMBERS = np.float32(X + (0.2 + np.abs(X)) * RNG.normal(size=3 * N))
LABELS = (RNG.uniform(size=3 * N) < 1 / (1 + np.exp(-X))).astype(int)
HELD, NEW = slice(0, N), slice(N, None)


def regression(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(slope * x, 0.3), obs=y)


def binary(x, y=None):
    """Four times too sure."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=4 * slope * x), obs=y)


def categorical(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", x.shape[0]):
        logits = jnp.stack([0 * x, 4 * slope * x], axis=-1)
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)


MADE = {}


def held_out(model, y, x=X[HELD]):
    """A tree of held-out data, made once: a copy, which may be changed."""
    key = model, y.tobytes(), x.tobytes()
    if key not in MADE:
        MADE[key] = px.to_datatree(SLOPES, x, y=y, model=model)
    return MADE[key].copy()


class Mean(RegressorMixin, BaseEstimator):
    fitted_ = True

    def fit(self, x, y):
        return self

    def predict(self, x):
        return x[:, 0]

    def __sklearn_is_fitted__(self):
        return True


@pytest.mark.parametrize("method", ["conformal", "cqr"])
def test_intervals_cover_new_rows_although_the_model_is_wrong(method):
    tree = held_out(regression, NUMBERS[HELD])
    assert px.calibration(tree, levels=(0.9,)).coverage[0] < 0.5
    fitted = px.recalibrate(tree, method)
    # By `predict`, whose dictionary of sites and quantiles it reads.
    low, high = fitted.apply(px.predict(regression, SLOPES, X[NEW]))
    y = NUMBERS[NEW]
    assert abs(((low <= y) & (y <= high)).mean() - 0.9) < 0.04
    assert fitted.fitted.rows == N


def test_the_absolute_residual_is_that_of_mapie():
    tree = held_out(regression, NUMBERS[HELD])
    mean = tree.posterior_predictive["y"].values.reshape(-1, N).mean(0, dtype=float)
    mapie = SplitConformalRegressor(Mean(), 0.8, prefit=True)
    new = np.array([[3.0]])
    expected = mapie.conformalize(mean[:, None], NUMBERS[HELD]).predict_interval(new)[1]
    ours = px.recalibrate(tree, "conformal", level=0.8).apply(new[:, 0])
    np.testing.assert_allclose(np.ravel(ours), expected.ravel(), rtol=1e-5)


def test_quantiles_are_those_of_the_level():
    fitted = px.recalibrate(held_out(regression, NUMBERS[HELD]), "cqr", level=0.8)
    with pytest.raises(ValueError, match=r"quantiles=\(0.1, 0.9\)"):
        fitted.apply(px.predict(regression, SLOPES, X[NEW]))
    prediction = px.predict(regression, SLOPES, X[NEW], quantiles=(0.1, 0.9))["y"]
    margin = fitted.fitted.margin
    low, high = fitted.apply(prediction)
    np.testing.assert_allclose(low, prediction.quantiles[0.1] - margin, atol=1e-5)
    np.testing.assert_allclose(high, prediction.quantiles[0.9] + margin, atol=1e-5)
    pair = prediction.quantiles[0.1], prediction.quantiles[0.9]
    np.testing.assert_array_equal(fitted.apply(pair), (low, high))


def test_a_temperature_has_the_best_log_score_that_one_temperature_can_have():
    fitted = px.recalibrate(held_out(binary, LABELS[HELD]), "temperature")
    p = np.float64(held_out(binary, LABELS[HELD])["uncertainty"]["y_probability"])
    logit = np.log(p / (1 - p))

    def loss(t):
        return np.logaddexp(0, np.where(LABELS[HELD], -logit, logit) / t).mean()

    best = minimize_scalar(loss, bounds=(0.1, 20), method="bounded").x
    assert fitted.fitted.temperature == pytest.approx(best, rel=1e-3)
    tempered = fitted.apply(px.predict(binary, SLOPES, X[NEW]))
    assert tempered.shape == LABELS[NEW].shape
    raw = np.float64(px.predict(binary, SLOPES, X[NEW])["y"].mean)
    errors = [
        px.scores.expected_calibration_error(LABELS[NEW], q) for q in (raw, tempered)
    ]
    assert errors[1].value < errors[0].value / 2


def test_a_binary_outcome_is_the_categorical_one_of_two_classes():
    trees = [held_out(model, LABELS[HELD]) for model in (binary, categorical)]
    for method in ("temperature", "aps"):
        one, two = (px.recalibrate(tree, method) for tree in trees)
        p = np.array([0.2, 0.9])
        both = np.stack([1 - p, p], axis=-1)
        ours = one.apply(p)
        ours = np.stack([1 - ours, ours], -1) if method == "temperature" else ours
        np.testing.assert_allclose(ours, two.apply(both), rtol=1e-4)


def test_sets_of_classes_hold_new_labels_although_the_model_is_wrong():
    fitted = px.recalibrate(
        held_out(categorical, LABELS[HELD]), "aps", rng_key=jax.random.key(1)
    )
    new = held_out(categorical, LABELS[NEW], X[NEW])
    prediction = new["uncertainty"]["y_probability"].values
    sets = fitted.apply(prediction, rng_key=jax.random.key(2))
    label = LABELS[NEW]
    assert abs(sets[np.arange(label.size), label].mean() - 0.9) < 0.04
    other = fitted.apply(prediction, rng_key=jax.random.key(3))
    assert (other != sets).any()


@pytest.mark.parametrize("suffix", ["nc", "zarr.zip"])
@pytest.mark.parametrize("method", ["temperature", "aps", "conformal", "cqr"])
def test_a_file_keeps_it(tmp_path, method, suffix):
    is_interval = method in ("conformal", "cqr")
    model, y = (regression, NUMBERS) if is_interval else (categorical, LABELS)
    fitted = px.recalibrate(held_out(model, y[HELD]), method)
    path = tmp_path / f"fit.{suffix}"
    tree = px.to_datatree(SLOPES)
    px.save(path, tree, recalibration=fitted)
    saved = px.load(path)
    assert saved.recalibration == fitted
    assert _RECALIBRATION not in saved.posterior.attrs
    px.save(path, saved.posterior)
    assert px.load(path).recalibration is None
    with pytest.raises(TypeError, match="recalibration"):
        px.save(path, tree, recalibration=fitted.fitted)


@pytest.mark.parametrize(
    ("model", "y", "method", "why"),
    [
        (regression, NUMBERS, "temperature", r"of continuous outcomes.*'conformal'"),
        (regression, NUMBERS, "aps", r"those there are \['conformal', 'cqr'\]"),
        (categorical, LABELS, "cqr", r"of categorical outcomes.*'temperature', 'aps'"),
    ],
)
def test_a_method_without_meaning_is_refused(model, y, method, why):
    with pytest.raises(ValueError, match=why):
        px.recalibrate(held_out(model, y[HELD]), method)


def test_what_it_takes_is_named():
    classes = held_out(binary, LABELS[HELD])
    with pytest.raises(ValueError, match="leave `level` out"):
        px.recalibrate(classes, "temperature", level=0.9)
    with pytest.raises(ValueError, match="5 held-out rows are too few"):
        px.recalibrate(held_out(regression, NUMBERS[:5], X[:5]), "cqr")
    with pytest.raises(ValueError, match="all 5 labels are of class 1"):
        px.recalibrate(held_out(binary, np.ones(5, int), X[:5]), "temperature")
    fitted = px.recalibrate(classes, "temperature")
    with pytest.raises(ValueError, match=r"no prediction of 'y', only of \['w'\]"):
        fitted.apply({"w": np.ones(3)})
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        fitted.apply(np.array([1.5, -1.0]))


@pytest.mark.parametrize("method", ["temperature", "aps"])
def test_predictions_of_other_classes_are_refused(method):
    fitted = px.recalibrate(held_out(categorical, LABELS[HELD]), method)
    for classes in (3, 5):
        with pytest.raises(ValueError, match="was fitted to 2 classes"):
            fitted.apply(np.full((4, classes), 1 / classes))
    again = px.Recalibration.from_json(fitted.to_json())
    assert again == fitted
    assert again.num_classes == 2


def test_frequencies_of_drawn_labels_are_no_probabilities():
    tree = held_out(binary, LABELS[HELD])
    del tree["uncertainty"]
    with pytest.raises(ValueError, match="no class probabilities of 'y', only draws"):
        px.recalibrate(tree, "temperature")


def test_masked_rows_are_left_out():
    mask = np.arange(N) % 3 > 0

    def model(x, y=None):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", x.shape[0]), numpyro.handlers.mask(mask=mask):
            numpyro.sample("y", dist.Bernoulli(logits=4 * slope * x), obs=y)

    masked = px.recalibrate(held_out(model, LABELS[HELD]), "temperature")
    kept = held_out(binary, LABELS[HELD][mask], X[HELD][mask])
    assert masked.fitted.rows == mask.sum()
    expected = px.recalibrate(kept, "temperature").fitted.temperature
    assert masked.fitted.temperature == pytest.approx(expected, rel=1e-4)
