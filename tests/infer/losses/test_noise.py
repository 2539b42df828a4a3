"""Signs are fair coins, and no two of them depend on each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyrox_ppl.infer.losses._noise import count_words, random_signs

DRAWS = 4000


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_signs_are_independent(make):
    first, second = (33, 2), (40,)
    words = count_words(first)
    assert words == 4

    @jax.jit
    def draw(key):
        left = random_signs(key, first, jnp.float32)
        right = random_signs(key, second, jnp.float32, first=words)
        return jnp.concatenate([left.ravel(), right])

    signs = np.asarray(jax.vmap(draw)(jax.random.split(make(0), DRAWS)))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean(0)).max() < 5 * DRAWS**-0.5
    pairs = (signs.T @ signs)[np.triu_indices(signs.shape[1], 1)] / DRAWS**0.5
    assert abs(pairs).max() < 5.0
    assert np.var(pairs) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("shape", [(), (1,), (31, 3), (64, 0)])
def test_signs_have_the_shape_and_the_type_that_is_asked_for(shape):
    signs = random_signs(jax.random.key(0), shape, jnp.bfloat16)
    assert signs.shape == shape
    assert signs.dtype == jnp.bfloat16
