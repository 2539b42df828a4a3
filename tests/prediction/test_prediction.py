"""A summary of draws is NumPy's own, in blocks that are sorted once."""

import jax.numpy as jnp
import numpy as np
import pytest

from pyrox_ppl.prediction import Prediction
from pyrox_ppl.prediction import _prediction as prediction

QUANTILES = (0.0, 0.05, 0.31, 0.5, 0.975, 1.0)


def summarise(draws):
    summary = Prediction.empty(draws.shape[1:], draws.dtype, QUANTILES)
    summary.fill(..., draws)
    return summary


@pytest.mark.parametrize("shape", [(), (5,), (33, 7), (0,)])
@pytest.mark.parametrize("number", [1, 2, 3, 100])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "bool", jnp.bfloat16])
def test_it_is_numpys(dtype, number, shape, monkeypatch):
    monkeypatch.setattr(prediction, "_BLOCK_BYTES", 4 * 100 * 10)  # several blocks
    rng = np.random.default_rng(0)
    draws = (10.0 * rng.normal(size=(number, *shape))).astype(dtype)
    summary = summarise(draws)
    plain = np.asarray(draws, np.float64)
    close = {"rtol": 1e-12} if dtype == "f8" else {"rtol": 1e-6, "atol": 1e-5}
    np.testing.assert_allclose(summary.mean, plain.mean(0), **close)
    np.testing.assert_allclose(summary.std, plain.std(0), atol=1e-6)
    for q, values in summary.quantiles.items():
        np.testing.assert_allclose(values, np.quantile(plain, q, axis=0), **close)


def test_a_value_that_is_not_finite_shows_as_in_numpy():
    draws = np.random.default_rng(0).normal(size=(50, 4)).astype("f4")
    draws[3, 1] = np.nan
    draws[0, 2], draws[5, 2] = np.inf, -np.inf
    draws[:40, 3] = np.inf
    summary = summarise(draws)
    with np.errstate(invalid="ignore"):
        quantiles = np.quantile(draws, QUANTILES, axis=0)
        np.testing.assert_allclose(summary.mean, draws.mean(0), rtol=1e-4)
        np.testing.assert_allclose(summary.std, draws.std(0), rtol=1e-5)
    for ours, theirs in zip(summary.quantiles.values(), quantiles, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
