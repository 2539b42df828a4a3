"""A module that loops over a dictionary is the same function once it is bound."""

from collections import defaultdict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.handlers import seed, substitute

import pyrox_ppl as px

X = jnp.array([0.3])


class Chain(eqx.Module):
    blocks: dict

    def __call__(self, x):
        for name, block in self.blocks.items():
            x = jnp.sin(x * block["w"] + len(name))
        return x


def make(kind=dict):
    inner = {"first": {"w": jnp.array([3.0])}, "a": {"w": jnp.array([0.5])}}
    return Chain(inner if kind is dict else defaultdict(dict, inner))


def by_hand(first, a):
    return np.sin(np.sin(np.asarray(X) * first + 5.0) * a + 1.0)


DRAWS = {
    "net.blocks.first.w": jnp.array([[1.0], [2.0]]),
    "net.blocks.a.w": jnp.array([[-1.0], [0.7]]),
}


@pytest.mark.parametrize("kind", [dict, defaultdict])
def test_bind_keeps_the_order_of_a_dictionary(kind):
    module, values = make(kind), {n: v[1] for n, v in DRAWS.items()}
    with seed(rng_seed=0), substitute(data=values), px.bayesianize():
        net = px.bind(module, "net")
    assert list(net.blocks) == ["first", "a"]
    assert type(net.blocks) is kind
    np.testing.assert_allclose(net(X), by_hand(2.0, 0.7), rtol=1e-6)


def test_members_of_a_plate_keep_it():
    def model():
        with numpyro.plate("group", 3), px.bayesianize():
            return px.bind(make(), "net", plate="group")

    assert list(seed(model, 0)().blocks) == ["first", "a"]


def test_modules_of_draws_and_predictions_keep_it():
    expected = np.stack([by_hand(1.0, -1.0), by_hand(2.0, 0.7)])
    one = px.module_from_draw(make(), DRAWS, 1, name="net")
    np.testing.assert_allclose(one(X), expected[1], rtol=1e-6)
    mean = px.module_from_mean(make(), DRAWS, name="net")
    np.testing.assert_allclose(mean(X), by_hand(1.5, -0.15), rtol=1e-5)
    assert list(px.modules_from_draws(make(), DRAWS, name="net").blocks) == [
        "first",
        "a",
    ]
    fit = px.predict(make(), DRAWS, X[None], name="net")
    np.testing.assert_allclose(fit.mean[0], expected.mean(0), rtol=1e-5)


def test_a_learned_module_keeps_it():
    with substitute(data={n: v[0] for n, v in DRAWS.items()}), px.learn():
        net = px.bind(make(), "net")
    np.testing.assert_allclose(jax.jit(lambda x: net(x))(X), by_hand(1.0, -1.0), 1e-6)
