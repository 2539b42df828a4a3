"""Rule 8: a bound leaf has the dtype of the stored one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import HANDLERS, SITE_TYPES, H, Z, make_film, run, sites

import pyrox_ppl as px
from pyrox_ppl.nn import HyperNetwork


def cast(module, dtype):
    return jax.tree.map(
        lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, module
    )


def bound_model(film):
    with px.bayesianize(prior=dist.StudentT(4.0, 0.0, 1.0)):
        return px.bind(film)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_the_dtype_is_kept(dtype, x64):
    if dtype == "float64" and not x64:
        pytest.skip("float64 needs x64")
    with jax.enable_x64(x64):
        film = cast(make_film(), dtype)
        bound = run(bound_model, film)
        assert {leaf.dtype for leaf in jax.tree.leaves(bound)} == {jnp.dtype(dtype)}
        again = run(lambda: bound_model(film))
        assert again.generator.weight.dtype == jnp.dtype(dtype)


def test_a_second_read_has_the_dtype_too():
    film = cast(make_film(), jnp.bfloat16)

    def model():
        with px.bayesianize():
            return px.bind(film), px.bind(film)

    one, two = run(model)
    assert one.generator.bias is two.generator.bias
    assert two.generator.bias.dtype == jnp.bfloat16


def test_nuts_samples_a_bfloat16_module_in_float32():
    film = cast(make_film(), jnp.bfloat16)

    def model():
        with px.bayesianize(prior_std=0.5):
            y = film(H, Z)
        numpyro.sample("y", dist.Normal(y.astype(jnp.float32), 1.0), obs=jnp.ones(3))

    kernel = numpyro.infer.NUTS(model)
    settings = {"num_warmup": 5, "num_samples": 5, "progress_bar": False}
    mcmc = px.infer.CompiledMCMC(kernel, **settings)
    mcmc.run(jax.random.key(0))
    for draws in mcmc.get_samples().values():
        assert draws.dtype == jnp.float32
        assert np.isfinite(draws).all()


def test_a_numpy_array_is_a_parameter_and_keeps_its_dtype():
    tree = {"w": np.ones(2, np.float32)}

    def model():
        with px.bayesianize():
            return px.bind(tree, "t")

    assert list(sites(model)) == ["t.w"]
    with jax.enable_x64(True):
        assert run(model)["w"].dtype == np.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", HANDLERS)
def test_the_dtype_is_kept_by_every_handler(name, dtype):
    with jax.enable_x64(True):
        film = cast(make_film(), dtype)

        def model():
            with HANDLERS[name]():
                return px.bind(film)

        leaves = jax.tree.leaves(run(model))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}
        if SITE_TYPES.get(name) == "param":
            params = sites(model, types=("param",)).values()
            assert {p["value"].dtype for p in params} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("rank", [None, 1])
def test_a_generator_has_the_dtype_of_its_target(dtype, rank):
    with jax.enable_x64(True):
        film = cast(make_film(), dtype)
        generator = HyperNetwork.init(film, 2, key=jax.random.key(0), rank=rank)
        assert {a.dtype for a in jax.tree.leaves(generator)} == {jnp.dtype(dtype)}
        made = generator.generate(film, Z)
        assert {a.dtype for a in jax.tree.leaves(made)} == {jnp.dtype(dtype)}
