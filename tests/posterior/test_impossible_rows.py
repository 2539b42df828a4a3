"""Observations that no draw allows: the ELPD is minus infinity, and print says why."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pyrox_ppl as px

Y = np.float32([0.5, -0.2, 3.0, 0.1, -4.0])
WIDTH = {"width": np.float32([1.0, 1.5, 2.0])}


def bounded(y=None):
    width = numpyro.sample("width", dist.Gamma(1.0, 1.0))
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.Uniform(-1.0 * width, width), obs=y)


def unbounded(y=None):
    width = numpyro.sample("width", dist.Gamma(1.0, 1.0))
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.Normal(0.0, width), obs=y)


@pytest.fixture(scope="module")
def tree():
    return px.to_datatree(WIDTH, y=Y, model=bounded)


def test_they_are_counted_in_a_comparison(tree):
    trees = {
        "bounded": tree,
        "unbounded": px.to_datatree(WIDTH, y=Y, model=unbounded),
    }
    comparison = px.compare(trees)
    assert comparison.methods == ("unbounded", "bounded")
    assert "bounded gives 2 of 5 rows a density of zero" in str(comparison)
    assert "unbounded gives" not in str(comparison)


@pytest.mark.parametrize("rows", [slice(5), slice(2, 3)])
def test_calibration_says_why_there_is_no_number(tree, rows):
    found = px.calibration(tree.isel(row=rows))
    assert found.elpd == -np.inf
    assert "ELPD -inf nats" in str(found)
    assert "support" in str(found)
    assert "nan" not in str(found)
