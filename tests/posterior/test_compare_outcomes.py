"""compare by the kind of the outcome: its scores, masks, and kinds that do not mix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scoringrules
from scipy import stats
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

import pyrox_ppl as px

RNG = np.random.default_rng(0)
N, K = 120, 3
LOGITS = RNG.normal(size=(N, K)).astype(np.float32)
LABELS = np.array([RNG.choice(K, p=np.exp(z) / np.exp(z).sum()) for z in LOGITS])
SCALES = {"right": RNG.normal(1.0, 0.1, 80), "sure": RNG.normal(4.0, 0.5, 150)}
DRAWS = {name: {"scale": np.float32(draws)} for name, draws in SCALES.items()}


def categorical(y=None, order=slice(None)):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
    with numpyro.plate("row", N):
        law = dist.Categorical(logits=scale * LOGITS[:, order])
        numpyro.sample("y", law, obs=y)


def binary(y=None):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
    with numpyro.plate("row", N):
        numpyro.sample("y", dist.Bernoulli(logits=scale * LOGITS[:, 0]), obs=y)


def ordered(y=None):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
    with numpyro.plate("row", N):
        law = dist.OrderedLogistic(scale * LOGITS[:, 0], jnp.array([-1.0, 1.0]))
        numpyro.sample("y", law, obs=y)


def trees_of(model, y, **options):
    return {
        name: px.to_datatree(draws, y=y, model=model, **options)
        for name, draws in DRAWS.items()
    }


@functools.cache
def trees_of_classes():
    """The trees of the categorical model, which tests read and do not change."""
    return trees_of(categorical, LABELS)


def softmax(scale, logits):
    return np.exp(jax.nn.log_softmax(scale[:, None, None] * logits)).mean(0)


def test_classes_are_scored_as_scikit_learn_does():
    comparison = px.compare(trees_of_classes())
    assert list(comparison.scores) == ["elpd", "accuracy", "brier", "ece"]
    for name, draws in DRAWS.items():
        p = np.float64(softmax(draws["scale"], LOGITS))
        p /= p.sum(1, keepdims=True)
        value = {n: score.value[name] for n, score in comparison.scores.items()}
        assert value["elpd"] == pytest.approx(-N * log_loss(LABELS, p), rel=1e-4)
        assert value["accuracy"] == accuracy_score(LABELS, p.argmax(1))
        brier = brier_score_loss(LABELS, p, labels=range(K))
        assert value["brier"] == pytest.approx(brier, rel=1e-4)
        ece = px.scores.expected_calibration_error(LABELS, p).value
        assert value["ece"] == pytest.approx(ece, rel=1e-4)
    assert "CRPS" not in str(comparison)
    with pytest.raises(ValueError, match="no score 'crps'; of this categori"):
        comparison.difference("crps")


def test_the_numbering_of_classes_changes_nothing():
    comparison = px.compare(trees_of_classes())
    order = np.array([2, 0, 1])
    other = px.compare(trees_of(categorical, np.argsort(order)[LABELS], order=order))
    for name, score in comparison.scores.items():
        for method, value in score.value.items():
            assert other.scores[name].value[method] == pytest.approx(value, rel=1e-4)
        ours, theirs = comparison.difference(name), other.difference(name)
        assert theirs["sure"] == pytest.approx(ours["sure"], rel=1e-3, abs=1e-6)


def test_the_error_of_a_calibration_error_is_that_of_the_bootstrap():
    x = RNG.normal(size=3000).astype(np.float32)
    y = (RNG.uniform(size=3000) < 1 / (1 + np.exp(-x))).astype(int)

    def model(y=None):
        scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
        with numpyro.plate("row", 3000):
            numpyro.sample("y", dist.Bernoulli(logits=scale * x), obs=y)

    trees = {
        name: px.to_datatree({"scale": np.full(9, scale)}, y=y, model=model)
        for name, scale in {"sure": 3.0, "surer": 8.0}.items()
    }
    p, q = (tree["uncertainty"]["y_probability"].values for tree in trees.values())
    picks = RNG.integers(3000, size=(800, 3000))
    error = px.scores.expected_calibration_error
    resampled = [
        error(y[pick], q[pick]).value - error(y[pick], p[pick]).value for pick in picks
    ]
    difference = px.compare(trees).difference("ece", "sure")["surer"]
    assert difference.value == pytest.approx(error(y, q).value - error(y, p).value)
    assert difference.se == pytest.approx(np.std(resampled), rel=0.1)


def test_a_binary_outcome_has_the_brier_score_of_one_probability():
    y = (LABELS == 0).astype(int)
    comparison = px.compare(trees_of(binary, y))
    for name, draws in DRAWS.items():
        p = jax.nn.sigmoid(draws["scale"][:, None] * LOGITS[:, 0]).mean(0)
        value = comparison.scores["brier"].value[name]
        assert value == pytest.approx(brier_score_loss(y, np.asarray(p)), rel=1e-4)


def test_ordered_classes_have_a_ranked_probability_score():
    trees = trees_of(ordered, LABELS)
    comparison = px.compare(trees)
    for name, tree in trees.items():
        p = tree["uncertainty"]["y_probability"].values
        rps = scoringrules.rps_score(LABELS + 1, p).mean()
        assert comparison.scores["rps"].value[name] == pytest.approx(rps, rel=1e-4)


def test_counts_are_numbers():
    y = RNG.poisson(np.exp(LOGITS[:, 0]))

    def model(y=None):
        scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
        with numpyro.plate("row", N):
            numpyro.sample("y", dist.Poisson(jnp.exp(scale * LOGITS[:, 0])), obs=y)

    def densities(y=None):
        scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
        with numpyro.plate("row", N):
            numpyro.sample("y", dist.Normal(jnp.exp(scale * LOGITS[:, 0]), 1.0), obs=y)

    trees = trees_of(model, y)
    comparison = px.compare(trees)
    assert list(comparison.scores) == ["elpd", "rmse", "crps", "coverage"]
    rate = np.exp(DRAWS["right"]["scale"].astype(float)[:, None] * LOGITS[:, 0])
    rmse = np.sqrt(((rate.mean(0) - y) ** 2).mean())
    assert comparison.scores["rmse"].value["right"] == pytest.approx(rmse, rel=1e-4)
    elpd = np.log(stats.poisson.pmf(y, rate).mean(0)).sum()
    assert comparison.scores["elpd"].value["right"] == pytest.approx(elpd, rel=1e-3)
    normal = px.to_datatree(DRAWS["right"], y=y.astype(np.float32), model=densities)
    mixed = px.compare({"counts": trees["right"], "densities": normal})
    assert "elpd" not in mixed.scores
    assert "densities do not compare" in str(mixed)


def vectors(y=None):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
    with numpyro.plate("row", N):
        law = dist.MultivariateNormal(0.5 * LOGITS, scale * jnp.eye(K))
        numpyro.sample("y", law, obs=y)


def entries(y=None):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
    with numpyro.plate("row", N, dim=-2), numpyro.plate("column", K, dim=-1):
        numpyro.sample("y", dist.Normal(0.5 * LOGITS, jnp.sqrt(scale)), obs=y)


def test_vectors_have_an_energy_score_and_compare_with_independent_entries():
    y = RNG.normal(0.5 * LOGITS).astype(np.float32)
    trees = trees_of(vectors, y)
    comparison = px.compare(trees)
    assert list(comparison.scores) == ["elpd", "rmse", "energy_score", "coverage"]
    drawn = trees["right"].posterior_predictive["y"].values[0]
    energy = scoringrules.es_ensemble(y, drawn.transpose(1, 0, 2), estimator="fair")
    value = comparison.scores["energy_score"].value["right"]
    assert value == pytest.approx(energy.mean(), rel=1e-4)
    # The same law, whose densities are those of single entries.
    single = px.to_datatree(DRAWS["right"], y=y, model=entries)
    mixed = px.compare({"vectors": trees["right"], "entries": single})
    assert mixed.scores["elpd"].influence["entries"].shape == (N,)
    assert mixed.outcome == "multivariate"


def test_angles_have_a_log_score_only():
    y = RNG.vonmises(0.0, 1.0, N).astype(np.float32)

    def model(y=None):
        scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
        with numpyro.plate("row", N):
            numpyro.sample("y", dist.VonMises(0.0, scale), obs=y)

    comparison = px.compare(trees_of(model, y))
    assert list(comparison.scores) == ["elpd"]
    with pytest.raises(ValueError, match="no tree has a score of 'y': right"):
        px.compare(trees_of(model, y, log_likelihood=False))


def test_kinds_without_a_common_score_are_refused():
    y = np.float32(LABELS)
    trees = trees_of_classes()

    def numbers(y=None):
        scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
        with numpyro.plate("row", N):
            numpyro.sample("y", dist.Normal(0.0, scale), obs=y)

    other = px.to_datatree(DRAWS["right"], y=y, model=numbers)
    with pytest.raises(ValueError, match=r"different kinds .*'cat.*'cont"):
        px.compare({"classes": trees["right"], "numbers": other})


def test_masked_rows_are_left_out_and_other_masks_refused():
    keep = np.arange(N) % 4 > 0

    def model(y=None, mask=keep):
        scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
        with numpyro.plate("row", N), numpyro.handlers.mask(mask=mask):
            numpyro.sample("y", dist.Categorical(logits=scale * LOGITS), obs=y)

    trees = trees_of(model, LABELS)
    comparison = px.compare(trees)
    assert comparison.observations == keep.sum()
    for name, draws in DRAWS.items():
        p = np.asarray(softmax(draws["scale"], LOGITS))[keep]
        value = comparison.scores["accuracy"].value[name]
        assert value == accuracy_score(LABELS[keep], p.argmax(1))
    whole, tree = trees_of_classes()["right"], trees["right"]
    with pytest.raises(ValueError, match=r"shape \(120,\), 'masked' of shape \(90,\)"):
        px.compare({"whole": whole, "masked": tree})
    zeros = np.zeros(N, int)
    ours = px.to_datatree(DRAWS["right"], y=zeros, model=model)
    theirs = px.to_datatree(DRAWS["right"], y=zeros, mask=keep[::-1], model=model)
    with pytest.raises(ValueError, match="masks of 'y' in 'a' and 'b' hide different"):
        px.compare({"a": ours, "b": theirs})


def test_integers_of_which_the_tree_says_nothing_are_refused():
    tree = trees_of_classes()["right"].copy(deep=True)
    del tree["observed_data"]["y"].attrs["outcome"]
    with pytest.raises(ValueError, match="pass outcome='count'"):
        px.compare({"a": tree})
    said = px.compare({"a": tree}, outcome="categorical")
    assert list(said.scores) == ["elpd", "accuracy", "brier", "ece"]


def test_draws_of_labels_have_no_class_probabilities():
    labels = RNG.integers(K, size=(80, N))
    tree = px.to_datatree(DRAWS["right"] | {"y": labels}, y=LABELS, model=categorical)
    comparison = px.compare({"a": tree})
    p = (labels[:, :, None] == np.arange(K)).mean(0)
    brier = brier_score_loss(LABELS, p, labels=range(K))
    assert comparison.scores["brier"].value["a"] == pytest.approx(brier)
    assert "these are frequencies of its draws" in str(comparison)


def test_a_tree_that_was_thinned_later_is_refused():
    tree = trees_of_classes()["right"]
    thinned = tree.copy()
    for name in ("posterior_predictive", "log_likelihood"):
        thinned[name] = tree[name].to_dataset().isel(draw=slice(None, None, 2))
    with pytest.raises(ValueError, match="selected, resampled or joined"):
        px.compare({"thinned": thinned})
