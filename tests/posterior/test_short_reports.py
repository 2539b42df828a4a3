"""Reports say the direction of a miscalibration, and fit on a few lines."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pyrox_ppl as px
from pyrox_ppl.infer import MinibatchResult

pytestmark = pytest.mark.rank_promotion

ROWS = 400


def binary(y=None):
    p = numpyro.sample("p", dist.Uniform(0.0, 1.0))
    with numpyro.plate("row", ROWS):
        numpyro.sample("y", dist.Bernoulli(p), obs=y)


def classes(y=None):
    p = numpyro.sample("p", dist.Uniform(0.0, 1.0))
    q = jnp.stack([p, (1.0 - p) / 2.0, (1.0 - p) / 2.0])
    with numpyro.plate("row", ROWS):
        numpyro.sample("y", dist.Categorical(q), obs=y)


def tree_of(model, p, right):
    """Predictions of the confidence `p`, of which the share `right` is right."""
    is_binary = model is binary
    label, other = (int(p > 0.5), int(p < 0.5)) if is_binary else (0, 1)
    y = jnp.where(jnp.arange(ROWS) < right * ROWS, label, other)
    return px.to_datatree({"p": jnp.full(5, p)}, y=y, model=model)


@pytest.mark.parametrize("model", [binary, classes])
@pytest.mark.parametrize(
    ("right", "said"),
    [(0.94, "under-confident: "), (0.5, "over-confident: "), (0.75, "")],
)
def test_the_direction_is_said(model, right, said):
    found = px.calibration(tree_of(model, 0.74, right))
    assert found.confidence == pytest.approx(0.74, abs=1e-6)
    line = f"  {said}accuracy {100 * right:.1f} %, mean confidence 74.0 %"
    assert line in str(found).splitlines()
    assert found.direction == said.removesuffix(": ")


def test_the_confidence_in_zero_counts_too():
    found = px.calibration(tree_of(binary, 0.1, 0.9))
    assert found.confidence == pytest.approx(0.9, abs=1e-6)
    assert found.accuracy == pytest.approx(0.9)
    assert found.direction == ""


def test_a_temperature_is_explained():
    cold = px.recalibrate(tree_of(classes, 0.74, 0.94), "temperature").fitted
    hot = px.recalibrate(tree_of(classes, 0.74, 0.5), "temperature").fitted
    assert cold.temperature < 1 < hot.temperature
    assert "below 1: predictions become surer (fitted to 400 rows)" in str(cold)
    assert "above 1: predictions become less sure" in str(hot)


def test_nothing_floods_the_terminal():
    rng = np.random.default_rng(0)
    p, y = rng.random(5000), rng.random(5000) < 0.5
    curve = px.scores.reliability_curve(y, p)
    rejected = px.scores.accuracy_rejection_curve(y, p, p * (1.0 - p))
    fit = MinibatchResult(
        {"auto_loc": jnp.ones(5000), "auto_scale": jnp.ones(5000)},
        None,
        jnp.arange(3000.0),
        np.array([3.0, 2.5, 2.75]),
        1,
        None,
        3000,
    )
    short = {
        repr(curve): "15 bins of equal width, 5000 rows",
        str(rejected): f"accuracy {rejected.accuracy[0]:.3f} with all rows",
        str(
            fit
        ): "3000 steps, the last loss 2999; epoch 1, a held-out loss of 2.5, the "
        "least of 3; params: auto_loc (5000,), auto_scale (5000,)",
        repr(px.calibration(tree_of(classes, 0.74, 0.94))): "y (categorical): 400",
        repr(px.diagnose(tree_of(classes, 0.74, 0.94))): "Verdict",
    }
    for record, said in short.items():
        assert said in record
        assert len(record) < 1500
    assert rejected.rejected.shape == rejected[0].shape


def test_records_without_numbers_are_printed():
    result = MinibatchResult({}, None, jnp.zeros(0), np.zeros(0), 0, None, 0)
    assert "0 steps" in repr(result)
    one = px.scores.accuracy_rejection_curve([1], np.array([0.9]), np.array([0.1]))
    assert repr(one) == "RejectionCurve(1 points; accuracy 1.000 with all rows)"
