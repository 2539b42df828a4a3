"""Every crossing compared, recalibrated and searched for doubt: against the hand."""

import math

import numpy as np
import pytest
from crossing_runs import CLOSE, NUMBER, over, own
from crossings import NOISE

import pyrox_ppl as px

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion
SOME = ("mlp-NonCentered", "plate-hierarchical", "learned-hierarchical", "walk-normal")


@over(often=SOME)
def test_what_judges_held_out_data(own):
    x = own.crossing.new_x
    tree, f = own.tree_on_new, own.f(x).astype(np.float64)
    y = np.asarray(tree["observed_data"]["y"], np.float64)
    draws = np.asarray(tree["posterior_predictive"]["y"], np.float64)
    draws = draws.reshape(NUMBER, *y.shape)
    comparison = px.compare({"one": tree, "two": tree})
    error = math.sqrt(np.mean((f.mean(0) - y) ** 2))
    assert comparison.scores["rmse"].value["one"] == pytest.approx(error, rel=1e-3)
    assert comparison.difference("rmse")["two"] == (0.0, 0.0)
    residuals = np.sort(np.abs(y - draws.mean(0)).ravel())
    rank = math.ceil((residuals.size + 1) * 0.5)
    fitted = px.recalibrate(tree, "conformal", level=0.5)
    lower, upper = fitted.apply(f.mean(0))
    np.testing.assert_allclose(upper - f.mean(0), residuals[rank - 1], **CLOSE)
    np.testing.assert_allclose(f.mean(0) - lower, residuals[rank - 1], **CLOSE)


@over(often=SOME)
def test_doubt_is_the_variance_of_the_function(own):
    x = own.crossing.new_x
    tree, doubt = own.tree_on_new, own.f(x).astype(np.float64).var(0)
    group = tree["uncertainty"]
    np.testing.assert_allclose(group["y_epistemic"], doubt, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(group["y_aleatoric"], np.full(doubt.shape, NOISE**2))
    found = px.predict(
        own.crossing.model,
        own.draws,
        x,
        sites=["y"],
        params=own.params,
        uncertainty=True,
        progress_bar=False,
    )["y"].uncertainty
    if found is not None:  # a scan that draws an outcome is not split
        np.testing.assert_allclose(found.epistemic, doubt, rtol=2e-3, atol=1e-6)
    by_row = doubt.reshape(len(doubt), -1).sum(-1)
    chosen = px.most_uncertain(tree, 1)
    assert by_row[chosen[0]] == pytest.approx(by_row.max(), rel=1e-3)
