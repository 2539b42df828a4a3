"""predict: inputs that all points share, beside those with a row for each."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pyrox_ppl as px

X = jax.random.normal(jax.random.key(0), (6, 2))
WEIGHTS = jax.random.normal(jax.random.key(1), (8, 2))
DRAWS = {"net.weight": WEIGHTS}


class Point(eqx.Module):
    weight: jax.Array

    def __call__(self, x, z):
        return self.weight @ x + z.sum()


def test_a_vector_as_long_as_there_are_points_is_refused_if_it_fits_both_ways():
    point, z = Point(jnp.ones(2)), jnp.arange(6.0)
    with pytest.raises(ValueError, match="each of the 6 points, or be shared"):
        px.predict(point, DRAWS, X[:6], z, name="net")
    mean = px.predict(point, DRAWS, X[:5], z, name="net").mean
    expected = (WEIGHTS @ X[:5].T).mean(0) + 15.0
    np.testing.assert_allclose(mean, expected, atol=1e-5)

    class Joined(eqx.Module):
        weight: jax.Array

        def __call__(self, x, z):
            return self.weight @ x + jnp.concatenate([x, z]).sum()

    mean = px.predict(Joined(jnp.ones(2)), DRAWS, X[:6], z, name="net").mean
    expected = (WEIGHTS @ X[:6].T).mean(0) + X[:6].sum(1) + 15.0
    np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_the_row_of_a_leading_axis_of_one_is_shared():
    class Sum(eqx.Module):
        weight: jax.Array

        def __call__(self, x, z):
            return x * self.weight + z

    row, expected = X[:1], np.asarray(X[:5]) * np.asarray(WEIGHTS.mean(0))
    for args, kwargs in (((X[:5], row), {}), ((X[:5],), {"z": row})):
        mean = px.predict(Sum(jnp.ones(2)), DRAWS, *args, name="net", **kwargs).mean
        np.testing.assert_allclose(mean, expected + np.asarray(row), atol=1e-5)
    mean = px.predict(Sum(jnp.ones(2)), DRAWS, row, X[:5], name="net", batch_size=2)
    by_hand = np.asarray(row) * np.asarray(WEIGHTS.mean(0)) + np.asarray(X[:5])
    np.testing.assert_allclose(mean.mean, by_hand, atol=1e-5)
    # As long as the points have numbers, it is no vector of values for the points.
    two = px.predict(Sum(jnp.ones(2)), DRAWS, X[:2], row, name="net").mean
    np.testing.assert_allclose(two, (expected + np.asarray(row))[:2], atol=1e-5)


def test_a_vector_of_which_each_point_takes_a_number_is_explained():
    class Timed(eqx.Module):
        weight: jax.Array

        def __call__(self, x, t):
            return jnp.concatenate([x * self.weight, t[None]])

    net, time = Timed(jnp.ones(2)), jnp.arange(5.0)
    for args, kwargs in (((X[:5],), {"t": time}), ((X[:5], time), {})):
        with pytest.raises(ValueError, match=r"for each of the 5 points. Say so: call"):
            px.predict(net, DRAWS, *args, name="net", **kwargs)
        mean = px.predict(
            net,
            DRAWS,
            *args,
            call=lambda net, *inputs, **named: jax.vmap(net)(*inputs, **named),
            name="net",
            **kwargs,
        ).mean
        np.testing.assert_array_equal(mean[:, 2], time)
    # No point takes a number of this one either, so the module's own error stands.
    with pytest.raises(TypeError, match="Cannot concatenate"):
        px.predict(net, DRAWS, X[:5], jnp.ones((5, 1)), name="net")
