"""Modules back out of draws: the same functions, and names that must match."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from models import make_field, make_film, make_mlp
from numpyro import handlers
from numpyro.infer import Predictive

import pyrox_ppl as px

KEY = jax.random.key(0)
X, Z = jax.random.normal(KEY, (6, 2)), jnp.array([0.5, 1.0])


def predictive(model, *args, number=7):
    return Predictive(model, num_samples=number)(KEY, *args)


def test_the_modules_are_the_functions_that_the_model_saw():
    field = make_field(depth=2)

    def model(x):
        with px.scope("left"), px.bayesianize():
            f = field(x, Z)
        numpyro.deterministic("f", f)

    drawn = predictive(model, X)
    name = "left.conditioned_inr"
    modules = px.modules_from_draws(field, drawn, name=name)
    values = eqx.filter_vmap(lambda one: one(X, Z))(modules)
    np.testing.assert_allclose(values, drawn["f"], rtol=1e-5, atol=1e-6)
    third = px.module_from_draw(field, drawn, 3, name=name)
    np.testing.assert_allclose(third(X, Z), drawn["f"][3], rtol=1e-5, atol=1e-6)
    inner = modules.inner.layers[0].weight
    np.testing.assert_array_equal(inner[5], field.inner.layers[0].weight)


def test_numpyros_own_scope_divides_by_a_slash():
    film = make_film()

    def model(h):
        with handlers.scope(prefix="net", divider="/"), px.bayesianize():
            f = film(h, Z)
        numpyro.deterministic("f", f)

    h = jnp.ones((4, 3))
    drawn = predictive(model, h)
    tree = px.to_datatree(drawn, h, model=model)
    for draws in (drawn, tree):
        one = px.module_from_draw(film, draws, 2, name="net/affine_modulation")
        np.testing.assert_allclose(one(h, Z), drawn["f"][2], rtol=1e-5)


def test_members_of_a_plate_are_an_axis_after_the_draws():
    mlp = make_mlp()

    def model(x):
        with numpyro.plate("member", 3, dim=-2), px.bayesianize():
            nets = px.bind(mlp, "net", plate="member")
        f = eqx.filter_vmap(lambda net: jax.vmap(net)(x))(nets)
        numpyro.deterministic("f", f)

    drawn = predictive(model, X)
    modules = px.modules_from_draws(mlp, drawn, name="net")
    each = eqx.filter_vmap(eqx.filter_vmap(lambda net: jax.vmap(net)(X)))(modules)
    np.testing.assert_allclose(each, drawn["f"], rtol=1e-5, atol=1e-6)
    one = px.module_from_draw(mlp, drawn, 1, name="net")
    assert one.layers[0].weight.shape == (3, 4, 2)
    with pytest.raises(ValueError, match="one axis more"):
        px.predict(mlp, drawn, X, name="net")


def test_tied_leaves_and_dtypes_are_kept():
    class Tied(eqx.Module):
        a: jax.Array
        b: jax.Array
        steps: jax.Array

    shared = jnp.ones(3, jnp.bfloat16)
    module = Tied(shared, shared, jnp.arange(2))
    modules = px.modules_from_draws(module, {"tied.a": np.ones((5, 3), np.float32)})
    assert modules.a is modules.b or np.array_equal(modules.a, modules.b)
    assert modules.a.shape == (5, 3)
    assert modules.a.dtype == jnp.bfloat16
    assert modules.steps.shape == (5, 2)


def test_the_mean_module_has_the_mean_parameters():
    mlp = make_mlp()
    biases = jax.random.normal(KEY, (4, 6, 1))
    tree = px.to_datatree({"mlp.layers.1.bias": biases}, batch_ndims=2)
    mean = px.module_from_mean(mlp, tree)
    np.testing.assert_allclose(mean.layers[1].bias[0], biases.mean(), rtol=1e-5)
    one = px.module_from_draw(mlp, tree, (2, 3))
    assert one.layers[1].bias[0] == biases[2, 3, 0]
    assert px.module_from_draw(mlp, tree, -1).layers[1].bias[0] == biases[3, 5, 0]
    with pytest.raises(IndexError, match="draw 24 of 24"):
        px.module_from_draw(mlp, tree, 24)


def test_a_mismatch_raises_with_both_lists():
    mlp = make_mlp()
    weight = {"net.layers.0.weight": jnp.ones((5, 4, 2))}
    with pytest.raises(ValueError, match=r"(?s)'mlp'.*mlp\.layers\.0.*name='net'"):
        px.modules_from_draws(mlp, weight)
    unknown = weight | {"net.layers.9.weight": jnp.ones((5, 4, 2))}
    with pytest.raises(
        ValueError, match=r"(?s)layers\.9.*not its parameters.*layers\.1"
    ):
        px.modules_from_draws(mlp, unknown, name="net")
    with pytest.raises(ValueError, match=r"shape \(4, 3\).*\(4, 2\)"):
        px.modules_from_draws(
            mlp, {"net.layers.0.weight": jnp.ones((5, 4, 3))}, name="net"
        )


def test_trained_params_of_a_tree_take_their_places():
    mlp = make_mlp()

    def model(x):
        weight = numpyro.param("net.layers.0.weight", mlp.layers[0].weight)
        net = eqx.tree_at(lambda m: m.layers[0].weight, mlp, weight)
        with px.bayesianize(where="*.bias"):
            net = px.bind(net, "net")
        numpyro.deterministic("f", jax.vmap(net)(x))

    drawn = predictive(model, X)
    f = drawn.pop("f")
    trained = {"net.layers.0.weight": jnp.zeros((4, 2))}
    tree = px.to_datatree(drawn, X, model=model, params=trained)
    module = px.module_from_draw(mlp, tree, 2, name="net")
    assert not module.layers[0].weight.any()
    expected = tree.posterior["f"].values[0, 2]
    np.testing.assert_allclose(jax.vmap(module)(X), expected, rtol=1e-5)
    assert not np.allclose(expected, f[2])
