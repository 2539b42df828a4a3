"""The gradient has the mean of ordinary draws, for every kind of layer."""

import jax.numpy as jnp
import pytest
from row_cases import LAYERS
from row_noise import Program, kinds

WAYS = [pytest.param(True, id="local"), pytest.param(False, id="flipout")]


@pytest.fixture(scope="module", params=LAYERS)
def case(request):
    module, density, expected = LAYERS[request.param]()
    return Program(module, density), expected


def test_a_layer_is_drawn_as_its_rows_allow(case):
    program, expected = case
    assert kinds(program) == expected


def test_the_mean_is_that_of_ordinary_draws(case):
    z = case[0].z_scores(local=True, draws=1000)
    assert jnp.abs(z).max() < 5.0
    assert jnp.mean(z**2) < 3.0


@pytest.mark.slow
@pytest.mark.parametrize("local", WAYS)
def test_standardised_differences_are_standard_normal(case, local):
    z = case[0].z_scores(local=local, draws=10_000)
    assert jnp.abs(z).max() < 4.5
    # The entries of a gradient depend on one another, so their mean varies.
    assert 0.2 < jnp.mean(z**2) < 2.5


@pytest.mark.parametrize("name", ["mlp", "conv2d", "gru-scan", "embedding-places"])
def test_signs_have_the_mean_of_ordinary_draws(name):
    z = Program(*LAYERS[name]()[:2]).z_scores(local=False, draws=1000)
    assert jnp.abs(z).max() < 5.0
