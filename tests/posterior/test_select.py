"""Selection by uncertainty: its order by hand, masks, and what it refuses."""

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pyrox_ppl as px
from pyrox_ppl.prediction._prediction import Prediction
from pyrox_ppl.prediction._uncertainty import Uncertainty

SLOPES = {"slope": np.float32([-1.0, 0.5, 2.0])}
X = np.float32([0.0, 3.0, -1.0, 0.5])


def numbers(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def classes(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)


@functools.cache
def tree_of_numbers():
    return px.to_datatree(SLOPES, X, y=np.zeros(4, np.float32), model=numbers)


@functools.cache
def tree_of_classes():
    return px.to_datatree(SLOPES, X, y=np.zeros(4, int), model=classes)


def test_numbers_are_ordered_by_the_variance_of_their_mean():
    tree = tree_of_numbers()
    assert px.most_uncertain(tree, 4).tolist() == [1, 2, 3, 0]


def test_classes_are_ordered_by_mutual_information():
    tree = tree_of_classes()
    p = 1 / (1 + np.exp(-SLOPES["slope"][:, None] * X))
    information = px.scores.mutual_information(np.stack([1 - p, p], -1))
    assert px.most_uncertain(tree, 3).tolist() == (-information).argsort()[:3].tolist()


def test_masked_rows_keep_their_numbers_and_are_not_chosen():
    mask = np.array([True, False, True, True])

    def model(x, y=None):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 4), numpyro.handlers.mask(mask=mask):
            numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    tree = px.to_datatree(SLOPES, X, y=np.zeros(4, np.float32), model=model)
    assert px.most_uncertain(tree, 3).tolist() == [2, 3, 0]
    with pytest.raises(ValueError, match="number of rows, 3; got 4"):
        px.most_uncertain(tree, 4)


@pytest.mark.parametrize("hidden", [None, (1, 1)])
def test_a_row_of_several_values_counts_by_their_sum(hidden):
    x = np.float32([[1.0, 1.0], [0.9, 2.0], [1.5, 0.0]])
    mask = np.ones((3, 2), bool)
    if hidden:
        mask[hidden] = False

    def by_rows(y=None):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 3, dim=-2), numpyro.plate("column", 2, dim=-1):
            numpyro.sample("y", dist.Normal(slope * x, 1.0).mask(mask), obs=y)

    tree = px.to_datatree(SLOPES, y=np.zeros((3, 2), np.float32), model=by_rows)
    sums = (x**2 * mask).sum(1)
    assert px.most_uncertain(tree, 3).tolist() == (-sums).argsort().tolist()


def test_predictions_of_rows_without_labels_are_taken():
    tree = tree_of_classes()
    group = tree["uncertainty"]
    parts = (group[f"y_{part}"].values for part in Uncertainty._fields)
    prediction = Prediction(X, X, {}, Uncertainty(*parts))
    chosen = px.most_uncertain(tree, 2).tolist()
    assert px.most_uncertain(prediction, 2).tolist() == chosen
    bare = Prediction(X, X, {})
    both = {"y": prediction, "f": bare}
    assert px.most_uncertain(both, 2, "y").tolist() == chosen
    with pytest.raises(ValueError, match=r"sites \['y', 'f'\]: choose one by `site`"):
        px.most_uncertain(both, 2)
    with pytest.raises(ValueError, match=r"predict\(.*uncertainty=True\)"):
        px.most_uncertain(bare, 2)
    with pytest.raises(ValueError, match=r"no uncertainty of 'f'.* of \['y'\]"):
        px.most_uncertain(both, 2, "f")


def test_the_curve_is_that_of_the_scores():
    y = np.array([1, 1, 1, 0])
    tree = px.to_datatree(SLOPES, X, y=y, model=classes)
    p = (1 / (1 + np.exp(-SLOPES["slope"][:, None] * X))).mean(0)
    entropy = px.scores.predictive_entropy(np.stack([1 - p, p], -1))
    expected = px.scores.accuracy_rejection_curve(y, p, entropy)
    curve = px.accuracy_rejection_curve(tree)
    np.testing.assert_allclose(curve.accuracy, expected.accuracy)
    np.testing.assert_allclose(curve.rejected, expected.rejected)
    np.testing.assert_allclose(curve.threshold, expected.threshold, rtol=1e-5)


def test_a_latent_is_not_taken_for_the_outcome():
    def mixture(x):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", x.shape[0]):
            c = numpyro.sample("c", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(slope * x * (2 * c - 1), 1.0))

    predictions = px.predict(mixture, SLOPES, X, uncertainty=True)
    with pytest.raises(ValueError, match="choose one by `site`"):
        px.most_uncertain(predictions, 2)
    with pytest.raises(ValueError, match="no uncertainty of 'y'"):
        px.most_uncertain(predictions, 2, "y")


@pytest.mark.wrong_types
@pytest.mark.parametrize("number", [0, 2.0, True, None])
def test_the_number_of_rows_is_a_whole_number(number):
    tree = tree_of_classes()
    with pytest.raises(ValueError, match="number must be a whole number from 1"):
        px.most_uncertain(tree, number)


def test_what_has_no_meaning_is_refused():
    tree = tree_of_numbers()
    with pytest.raises(ValueError, match="'y' is continuous, and only predictions of"):
        px.accuracy_rejection_curve(tree)

    def vectors(y=None):
        mean = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        law = dist.MultivariateNormal(jnp.full((4, 2), mean), jnp.eye(2))
        numpyro.sample("y", law, obs=y)

    tree = px.to_datatree(SLOPES, y=np.zeros((4, 2), np.float32), model=vectors)
    with pytest.raises(ValueError, match="no epistemic uncertainty of 'y'"):
        px.most_uncertain(tree, 1)
    with pytest.raises(TypeError, match="most_uncertain takes a DataTree"):
        px.most_uncertain(np.ones(3), 1)
