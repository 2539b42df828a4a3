"""The variance of the gradient by what is only added, in closed form."""

import jax.numpy as jnp
import pytest
from row_noise import Program

ROWS = 50
# Residuals of a fit to unit noise: their mean is zero, their variance one.
RESIDUALS = jnp.where(jnp.arange(ROWS) % 2 == 0, 1.0, -1.0)


def density(shift):
    return -0.5 * jnp.sum((RESIDUALS[:, None] - shift[None]) ** 2)


@pytest.mark.parametrize("width", [1.0, 0.1])
def test_noise_of_each_row_pays_for_locations_and_for_wide_scales(width):
    scale = width * ROWS**-0.5  # the posterior's, times the width
    program = Program(jnp.zeros(1), density, scale=scale)
    plan = program.plan

    def ours(params, key):
        return program.estimate(params, key, plan, True)

    _, loc, spread = program.gradients(ours, 4000).var(0)
    assert loc == pytest.approx(width**2, rel=0.15)
    assert spread == pytest.approx(ROWS + 2 * width**2, rel=0.15)
    _, loc, spread = program.gradients(program.ordinary, 4000).var(0)
    assert loc == pytest.approx(ROWS * width**2, rel=0.15)
    assert spread == pytest.approx(2 * ROWS * width**2, rel=0.15)
