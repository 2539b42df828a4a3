"""pit: the rank of what was observed among its predictive draws."""

import jax
import numpy as np
from numpy.typing import ArrayLike

import pyrox_ppl.scores._check as _check
from pyrox_ppl.scores._row_blocks import row_blocks
from pyrox_ppl.scores._uniform import uniform


def pit(observations: ArrayLike, draws: ArrayLike, *, rng_key: jax.Array) -> np.ndarray:
    r"""Probability integral transform; uniform on [0, 1] if predictions are calibrated.

    .. math::
        \frac{\#\{\tilde y_s < y\} + u \, (\#\{\tilde y_s = y\} + 1)}{S + 1}

    with u uniform, for S predictive draws :math:`\tilde y_s`. It is exactly uniform if
    the observation is one more draw of the same law, for continuous outcomes, counts
    and binary outcomes alike. A hump-shaped histogram means that predictions are too
    wide, a U-shaped one that they are too narrow, a slope that they are biased. A
    single value is neither good nor bad.

    **Shapes**: observations ``(*rows)``, draws ``(draws, *rows)``, result ``(*rows)``.

    Args:
        observations: What was observed.
        draws: Predictive draws of each.
        rng_key: A JAX key for u, which breaks ties.

    Returns:
        The transform of every row, in double precision.

    Raises:
        ValueError: If shapes do not match, or if a value is NaN or infinite.

    References:
        Dawid, "Statistical Theory: The Prequential Approach", JRSS A 1984. Czado,
        Gneiting and Held, "Predictive model assessment for count data", Biometrics
        2009.

    Example:
        >>> import jax, numpy as np, pyrox_ppl as px
        >>> draws = np.arange(99.0)[:, None]
        >>> px.scores.pit(np.array([49.5]), draws, rng_key=jax.random.key(0)).round(1)
        array([0.5])
    """
    observed, drawn = _check.observations_and_draws(observations, draws)
    y, result = observed.reshape(-1), np.empty(observed.size)
    u = uniform(rng_key, y.shape)
    for where, block in row_blocks(drawn):
        if not np.isfinite(block).all():
            _check.check_finite("draws", drawn)
        below, equal = (block < y[where]).sum(0), (block == y[where]).sum(0)
        result[where] = (below + u[where] * (equal + 1)) / (len(drawn) + 1)
    return result.reshape(observed.shape)
