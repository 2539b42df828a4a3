"""Random bits made along one axis are the bits that JAX makes along several."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.extend.core import jaxpr_as_fun

from pyrox_ppl.prediction._flat_bits import with_flat_bits

KEY = jax.random.key(3)


def shapes_of_bits(jaxpr):
    """The shapes of the random bits of a jaxpr, those inside its calls included."""
    shapes = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "random_bits":
            shapes.append(eqn.params["shape"])
        elif "jaxpr" in eqn.params:
            shapes += shapes_of_bits(eqn.params["jaxpr"].jaxpr)
    return shapes


IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")
WAYS = (True, False)
DTYPES = ("uint8", "uint16", "uint32")
# All of threefry, which alone can be partitioned, and every pair; triples are slow.
TRIPLES = [
    pytest.param(
        *(impl, way, dtype),
        marks=() if i == 0 or (i + j + k) % 2 == 0 else pytest.mark.slow,
    )
    for i, impl in enumerate(IMPLS)
    for j, way in enumerate(WAYS)
    for k, dtype in enumerate(DTYPES)
]


@pytest.mark.parametrize(("impl", "partitionable", "dtype"), TRIPLES)
def test_the_bits_are_jaxs(impl, partitionable, dtype):
    key = jax.random.key(3, impl=impl)
    with jax.threefry_partitionable(partitionable):
        for shape in [(5, 3), (7,), (), (2, 3, 4), (0, 3)]:

            def bits(key, shape=shape):
                return jax.random.bits(key, shape, dtype)

            flat, found = with_flat_bits(bits, key)
            assert found.shape == shape
            np.testing.assert_array_equal(flat(key), bits(key))
        keys = jax.random.split(key, 2)
        many = jax.vmap(bits)
        np.testing.assert_array_equal(with_flat_bits(many, keys)[0](keys), many(keys))


# Made in the test that takes it: collecting the tests should compile nothing.
LAWS = {
    "Categorical of logits": lambda: dist.Categorical(
        logits=jnp.arange(12.0).reshape(4, 3)
    ),
    "Categorical of probs": lambda: dist.Categorical(probs=jnp.full((4, 3), 1 / 3)),
    "Bernoulli": lambda: dist.Bernoulli(logits=jnp.zeros((4, 3))),
    "Normal of events": lambda: dist.Normal(jnp.zeros((4, 3)), 1.0).to_event(1),
    "masked Normal": lambda: dist.Normal(jnp.zeros((4, 3)), 1.0).mask(
        jnp.ones((4, 3), bool)
    ),
    "MultivariateNormal": lambda: dist.MultivariateNormal(
        jnp.zeros((4, 3)), jnp.eye(3)
    ),
    "Gamma": lambda: dist.Gamma(jnp.full((4, 3), 0.5), 2.0),
    "Poisson": lambda: dist.Poisson(jnp.full((4, 3), 5.0)),
    "Dirichlet": lambda: dist.Dirichlet(jnp.full((4, 3), 0.5)),
    "StudentT": lambda: dist.StudentT(3.0, jnp.zeros((4, 3)), 1.0),
}


# What a law does with its bits does not depend on the kind of key, so three suffice.
RAW = ("Categorical of logits", "masked Normal", "Gamma")


@pytest.mark.parametrize(
    ("law", "raw"),
    [
        pytest.param(
            *(law, raw),
            id=f"{law}-{'raw' if raw else 'typed'}",
            marks=pytest.mark.slow if raw and law not in RAW else (),
        )
        for law in LAWS
        for raw in (False, True)
    ],
)
def test_the_draws_are_numpyros(law, raw):
    fn = LAWS[law]()
    key = jax.random.PRNGKey(3) if raw else KEY

    def draw(key):
        return fn.sample(key)

    flat, _ = with_flat_bits(draw, key)
    ours, theirs = jax.jit(flat)(key), jax.jit(draw)(key)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def test_no_bits_are_made_along_several_axes():
    logits = jnp.zeros((4, 3))

    def draw(key, x):
        labels = jax.random.categorical(key, logits + x)
        return jax.jit(lambda key: jax.random.normal(key, (2, 5)))(key), labels

    before = jax.make_jaxpr(draw)(KEY, 1.0)
    assert sorted(shapes_of_bits(before.jaxpr)) == [(2, 5), (4, 3)]
    flat, _ = with_flat_bits(draw, KEY, 1.0)
    after = jax.make_jaxpr(flat)(KEY, 1.0)
    assert sorted(shapes_of_bits(after.jaxpr)) == [(10,), (12,)]
    for ours, theirs in zip(jaxpr_as_fun(after)(KEY, 1.0), draw(KEY, 1.0), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_loops_and_trees_stay_what_they_are():
    def run(argument):
        def step(carry, key):
            carry = carry + jax.random.normal(key, (2, 3))
            return carry, jax.random.bernoulli(key, 0.3, (2, 3))

        total, coins = jax.lax.scan(step, argument["start"], argument["keys"])
        return {"total": total, "coins": coins, "constant": jnp.ones(2), "none": None}

    argument = {"start": jnp.zeros((2, 3)), "keys": jax.random.split(KEY, 4)}
    flat, shapes = with_flat_bits(run, argument)
    ours, theirs = jax.jit(flat)(argument), jax.jit(run)(argument)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert shapes["total"].shape == (2, 3)
    for name in ("total", "coins", "constant"):
        np.testing.assert_array_equal(ours[name], theirs[name])
