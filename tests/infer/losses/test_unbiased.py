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


@pytest.mark.parametrize("local", WAYS)
def test_the_mean_is_that_of_ordinary_draws(case, local):
    z = case[0].z_scores(local=local)
    assert jnp.abs(z).max() < 5.0
    assert jnp.mean(z**2) < 3.0
