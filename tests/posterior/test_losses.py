"""Whether SVI has settled: losses of known shapes."""

import numpy as np
import pytest
import xarray as xr

import pyrox_ppl as px

STEPS = np.arange(1000)
NOISE = np.random.default_rng(0).normal(size=1000)
FALL = np.geomspace(1e4, 1222.0, 400)

FINE = {
    "settled": 1000 + NOISE,
    "settled early": 1000 * np.exp(-STEPS / 50) + NOISE,
    "noisy and large": 1e5 + 1e3 * NOISE,
    "negative": -1e4 + NOISE,
    "in float32": np.float32(1e7) + np.float32(100 * NOISE),
    "whole numbers": (1000 + 5 * NOISE).astype(int),
    "wanders within its noise": 1000 + NOISE + 0.01 * NOISE[::-1].cumsum(),
}
NOT_FINE = {
    "rises": (np.linspace(1222.0, 9736.0, 600), "rises again"),
    "falls and rises": (np.r_[FALL, np.linspace(1222.0, 9736.0, 600)], "rises again"),
    "stays high": (np.r_[FALL, 9736.0 + NOISE[:600]], "rises again"),
    "creeps up": (1000 + 0.01 * STEPS + NOISE, "rises again"),
    "negative, rises": (-1e4 + STEPS + NOISE, "rises again"),
    "falls": (100 - 0.05 * STEPS + NOISE, "still falls"),
    "falls at the end": (np.where(STEPS < 950, 100, 50) + NOISE, "still falls"),
    "slow waves": (100 + 50 * np.sin(STEPS / 200), "still falls"),
    "waves": (100 + 50 * np.sin(STEPS / 10) + NOISE, "up and down"),
    "to and fro": (1000 + np.where(STEPS % 2, 100, -100) + NOISE, "up and down"),
    "constant": (np.full(100, 3.0), "nothing was trained"),
    "NaN": (np.where(STEPS < 5, np.nan, NOISE), "smaller learning rate"),
    "infinite": (np.where(STEPS == 7, np.inf, NOISE), "smaller learning rate"),
    "one member of two": (np.stack([1000 + NOISE, 1000.0 + STEPS]), "rises again"),
}


def check_of(losses, **attrs):
    tree = px.to_datatree({"a": np.random.default_rng(1).normal(size=(1, 50))})
    tree.attrs.update(inference="SVI", **attrs)
    dims = ("chain", "step")[-losses.ndim :]
    tree["optimization"] = xr.DataTree(xr.Dataset({"loss": (dims, losses)}))
    diagnosis = px.diagnose(tree)
    check = next(check for check in diagnosis.checks if check.name == "ELBO")
    assert ("ELBO" in diagnosis.failed) is (check.passed is False)
    return check


@pytest.mark.parametrize("shape", FINE)
def test_a_loss_that_settled_is_fine(shape):
    assert check_of(FINE[shape]).passed


@pytest.mark.parametrize("shape", NOT_FINE)
def test_a_loss_that_did_not_is_not(shape):
    losses, advice = NOT_FINE[shape]
    check = check_of(losses)
    assert check.passed is False
    assert advice in check.advice


@pytest.mark.parametrize("steps", [0, 1, 19])
def test_of_few_steps_nothing_is_known(steps):
    assert check_of(np.linspace(9.0, 1.0, steps)).passed is None


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_not_taken_for_a_trend(seed):
    noise = np.random.default_rng(seed).standard_t(3, size=500)
    assert check_of(1000 + 20 * noise).passed


@pytest.mark.parametrize(
    ("attrs", "advice", "no_advice"),
    [
        ({}, "more steps:", "trained"),
        ({"best_epoch": 3, "epochs": 9}, "trained", "init_scale"),
    ],
)
def test_more_steps_are_no_mend_where_held_out_rows_chose_an_earlier_epoch(
    attrs, advice, no_advice
):
    check = check_of(NOT_FINE["falls"][0], **attrs)
    assert advice in check.advice
    assert no_advice not in check.advice
    assert ("epoch 4 of 9" in check.finding) is bool(attrs)
