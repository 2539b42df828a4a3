"""A model in bfloat16 is judged by densities and probabilities in single precision."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import entr, log_softmax, logsumexp
from scipy.stats import norm

import pyrox_ppl as px

pytestmark = pytest.mark.rank_promotion
RNG = np.random.default_rng(0)
# Multiples of 1/8, whose sums of products are exact before they are rounded.
X = RNG.integers(-16, 16, size=(40, 2)).astype(np.float32) / 8
W = RNG.integers(-16, 16, size=(30, 2, 3)).astype(np.float32) / 8
HALF = np.asarray(jnp.asarray(X @ W, jnp.bfloat16), np.float64)
LABELS = HALF.mean(0).argmax(-1)
HEIGHTS = np.asarray(jnp.asarray(HALF.mean(0)[:, 0], jnp.bfloat16))


def model(x, kind=None, height=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    f = (x @ w).astype(jnp.bfloat16)
    scale = jnp.asarray(0.5, jnp.bfloat16)
    with numpyro.plate("row", len(x)):
        numpyro.sample("kind", dist.Categorical(logits=f), obs=kind)
        numpyro.sample("height", dist.Normal(f[:, 0], scale), obs=height)


@pytest.fixture(scope="module")
def tree():
    observed = {"kind": jnp.asarray(LABELS), "height": jnp.asarray(HEIGHTS)}
    return px.to_datatree({"w": W}, jnp.asarray(X), model=model, **observed)


def test_log_densities_have_the_digits_of_single_precision(tree):
    log_p = log_softmax(HALF, -1)
    kind = np.take_along_axis(log_p, LABELS[None, :, None], -1)[..., 0]
    height = norm.logpdf(HEIGHTS.astype(np.float64), HALF[..., 0], 0.5)
    for name, expected in {"kind": kind, "height": height}.items():
        np.testing.assert_allclose(
            tree["log_likelihood"][name][0], expected, rtol=1e-5, atol=1e-5
        )
        elpd = (logsumexp(expected, 0) - np.log(len(W))).sum()
        assert px.calibration(tree, name).elpd == pytest.approx(elpd, rel=1e-6)
    prior = norm.logpdf(W.astype(np.float64)).sum((1, 2))
    lp = kind.sum(-1) + height.sum(-1) + prior
    np.testing.assert_allclose(tree["sample_stats"]["lp"][0], lp, rtol=1e-6)


def test_probabilities_sum_to_one(tree):
    p = np.exp(log_softmax(HALF, -1))
    split = tree["uncertainty"]
    np.testing.assert_allclose(split["kind_probability"], p.mean(0), atol=1e-6)
    np.testing.assert_allclose(
        split["kind_aleatoric"], entr(p).sum(-1).mean(0), atol=1e-6
    )
    spread = HALF[..., 0].var(0)
    np.testing.assert_allclose(split["height_epistemic"], spread, rtol=1e-6)
    np.testing.assert_allclose(split["height_aleatoric"], 0.25)
    found = px.predict(model, {"w": W}, jnp.asarray(X), uncertainty=True)["kind"]
    np.testing.assert_allclose(found.mean, p.mean(0), atol=1e-6)
    np.testing.assert_array_equal(found.uncertainty.total, split["kind_total"])
    fitted = px.recalibrate(tree, "temperature", "kind")
    np.testing.assert_allclose(fitted.apply(found).sum(-1), 1.0)
