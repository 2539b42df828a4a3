"""What the warm-up of MCLMC makes of the positions that it is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.diagnostics import effective_sample_size

from pyrox_ppl.infer.kernels._mclmc_tuning import Step, Tuner

SPREADS = np.array([0.01, 0.02, 1e-3, 0.05], np.float32)


def tune(positions, *, precondition=False):
    """The values as they are before the autocorrelation decides L."""
    warmup = len(positions)
    settings = ((0.5, 0.1), 1e-3, None, precondition, effective_sample_size)
    tuner = Tuner(warmup, *settings)

    def update(tuning, given):
        i, z = given
        step = Step(z, jnp.float32(0.1), jnp.bool_(True))
        return tuner.update(i, tuning, step), None

    stop = warmup - round(0.1 * warmup)
    given = jnp.arange(stop), jnp.asarray(positions[:stop])
    return jax.lax.scan(update, tuner.start(given[1][0]), given)[0]


@pytest.mark.parametrize("where", [0.0, 1e3])
def test_the_spread_is_known_far_from_zero(where):
    """Rounded to float32, mean squares of 1e6 differ by no less than 0.06."""
    noise = np.random.default_rng(0).normal(size=(2000, 4)) * SPREADS
    positions = np.float32(where + noise)
    measured = np.float64(positions[1600:1800])
    tuning = tune(positions)
    np.testing.assert_allclose(tuning.L, np.sqrt(measured.var(0).sum()), rtol=0.02)
    tuning = tune(positions, precondition=True)
    np.testing.assert_allclose(tuning.inverse_mass_matrix, measured.var(0), rtol=0.05)
