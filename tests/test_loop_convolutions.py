"""Convolutions inside loops are moved to the order of axes that is fast there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from numpyro.infer.autoguide import AutoNormal

import pyrox_ppl as px
from pyrox_ppl._loop_convolutions import with_fast_convolutions
from pyrox_ppl.infer import CompiledSVI
from pyrox_ppl.infer.compiled._chains import map_over_chains
from pyrox_ppl.infer.ensembles._programs import Plan, _map_members

KEY = jr.key(0)
cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="other devices have no such kernel"
)


def convolutions(jaxpr, looped=False):
    """The numbers of dimensions of the convolutions of a program inside loops."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated" and looped:
            yield eqn.params["dimension_numbers"]
        inside = looped or eqn.primitive.name in ("while", "scan")
        for body in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            body = getattr(body, "jaxpr", body)
            if hasattr(body, "eqns"):
                yield from convolutions(body, inside)


def is_fast(numbers):
    """Rows first and channels last: what XLA's kernel takes."""
    ndim = len(numbers.lhs_spec)
    image = (0, ndim - 1, *range(1, ndim - 1))
    kernel = (ndim - 1, ndim - 2, *range(ndim - 2))
    return tuple(numbers) == (image, kernel, image)


LAYERS = {
    "1-D": lambda: eqx.nn.Conv1d(3, 4, 3, padding=1, key=KEY),
    "2-D": lambda: eqx.nn.Conv2d(3, 4, (3, 2), padding=((1, 0), (2, 1)), key=KEY),
    "stride": lambda: eqx.nn.Conv2d(3, 4, 3, stride=(2, 1), key=KEY),
    "dilation": lambda: eqx.nn.Conv2d(3, 4, 2, dilation=2, key=KEY),
    "transposed": lambda: eqx.nn.ConvTranspose2d(3, 4, 3, stride=2, key=KEY),
}


def images(layer):
    return jr.normal(jr.key(1), (5, 3, *(7, 6)[: layer.num_spatial_dims]))


def value_and_gradients(layer, x):
    def loss(layer, x):
        return jnp.sum(jnp.sin(jax.vmap(layer)(x)))

    return jax.value_and_grad(lambda both: loss(*both))((layer, x))


@cpu
@pytest.mark.parametrize("name", LAYERS)
def test_a_loop_has_the_values_of_the_same_without_a_loop(name):
    layer = LAYERS[name]()
    x = images(layer)

    def in_a_loop(layer, x):
        start = jax.tree.map(jnp.zeros_like, value_and_gradients(layer, x))
        return lax.fori_loop(0, 1, lambda i, _: value_and_gradients(layer, x), start)

    fast = with_fast_convolutions(in_a_loop)
    before = list(convolutions(jax.make_jaxpr(in_a_loop)(layer, x).jaxpr))
    after = list(convolutions(jax.make_jaxpr(fast)(layer, x).jaxpr))
    assert len(after) == len(before) == 3
    assert not any(map(is_fast, before))
    assert all(map(is_fast, after))
    got, expected = fast(layer, x), value_and_gradients(layer, x)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@cpu
def test_branches_checkpoints_and_calls_within_nested_loops_are_reached():
    layer = LAYERS["2-D"]()
    x = images(layer)

    @jax.jit
    def convolve(x):
        return jax.vmap(layer)(x)

    def total(i, x):
        one = lax.cond(i > 0, lambda x: convolve(x).sum(), lambda x: x.sum(), x)
        return one + jax.checkpoint(convolve)(x).sum()

    def nested(x):
        def outer(total_so_far, i):
            inner = lax.fori_loop(0, 2, lambda j, a: a + total(j, x), 0.0)
            return total_so_far + inner, inner

        return lax.scan(outer, 0.0, jnp.arange(3))

    fast = with_fast_convolutions(nested)
    found = list(convolutions(jax.make_jaxpr(fast)(x).jaxpr))
    assert len(found) == 2
    assert all(map(is_fast, found))
    for one, other in zip(fast(x), nested(x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_program_without_convolutions_in_loops_stays_as_it_is():
    layer = LAYERS["2-D"]()

    def function(x):
        return lax.fori_loop(0, 3, lambda i, y: jnp.sin(y), jax.vmap(layer)(x)[0, 0])

    x = jr.normal(jr.key(1), (5, 3, 6, 6))
    traced = []

    def counted(x):
        traced.append(x)
        return function(x)

    after = jax.make_jaxpr(with_fast_convolutions(counted))(x)
    assert len(traced) == 1
    (call,) = after.eqns  # the program itself, and nothing of it was made anew
    assert str(call.params["jaxpr"]) == str(jax.make_jaxpr(function)(x))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: eqx.nn.Conv2d(4, 4, 3, groups=2, key=KEY), (5, 4, 6, 6)),
        (lambda: eqx.nn.Conv3d(2, 2, 2, key=KEY), (5, 2, 3, 3, 3)),
    ],
)
def test_groups_and_volumes_keep_their_order(layer, shape):
    layer = layer()

    def function(x):
        return lax.map(lambda x: jax.vmap(layer)(x), x[None])

    traced = jax.make_jaxpr(with_fast_convolutions(function))(jnp.ones(shape))
    (numbers,) = convolutions(traced.jaxpr)
    assert not is_fast(numbers)


@cpu
def test_a_compiled_run_has_fast_convolutions(monkeypatch):
    layer = LAYERS["1-D"]()
    x, programs = images(layer), []

    def model(x, y=None):
        with px.bayesianize():
            net = px.bind(layer, "net")
        with numpyro.plate("row", len(x)):
            mean = jax.vmap(net)(x).mean((1, 2))
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    jit = jax.jit

    def keep(function, **options):
        def traced(*args):
            programs.append(jax.make_jaxpr(function)(*args).jaxpr)
            return function(*args)

        return jit(traced, **options)

    svi = CompiledSVI(
        model, AutoNormal(model), numpyro.optim.Adam(0.1), numpyro.infer.Trace_ELBO()
    )
    monkeypatch.setattr("pyrox_ppl.infer.compiled._programs.jax.jit", keep)
    svi.run(KEY, 2, x, y=x.mean((1, 2)), progress_bar=False)
    runs = [list(convolutions(program)) for program in programs]
    # The data have no gradient. Programs that run once do without.
    assert any(len(run) == 2 and all(map(is_fast, run)) for run in runs)


def of_all_devices(image):
    """A convolution in a `shard_map`, whose body knows the axis of its mesh."""
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("device",), axis_types=auto)
    part = jax.sharding.PartitionSpec("device")

    def of_one(image):
        return image - lax.pmean(LAYERS["2-D"]()(image[0]).mean(), "device")

    return jax.shard_map(of_one, mesh=mesh, in_specs=part, out_specs=part)(image)


def counted(image):
    """A convolution in a loop that writes to a reference."""
    count = jax.new_ref(jnp.zeros(()))

    def body(i, total):
        count[...] += 1.0
        return total + LAYERS["2-D"]()(image[0]).mean()

    return lax.fori_loop(0, 2, body, 0.0) + count[...]


def solved(image):
    """A linear system of a convolution, whose parameters are named tuples."""
    layer = eqx.nn.Conv2d(3, 3, 3, padding=1, use_bias=False, key=KEY)

    def system(x):
        return 0.1 * layer(x) + x

    def solve(system, b):
        return 2.0 * b - system(b)

    return lax.custom_linear_solve(system, image[0], solve, transpose_solve=solve)


@cpu
@pytest.mark.parametrize("body", [of_all_devices, counted, solved])
def test_bodies_that_need_what_surrounds_them_stay_as_they_are(body):
    x = images(LAYERS["2-D"]())[:1]

    def looped(x):
        def both(x):
            return body(x).sum() + LAYERS["2-D"]()(x[0]).sum()

        return lax.map(both, x[None])

    fast = jax.jit(with_fast_convolutions(looped))
    np.testing.assert_allclose(fast(x), jax.jit(looped)(x), rtol=1e-5)
    assert any(map(is_fast, convolutions(jax.make_jaxpr(fast)(x).jaxpr)))


@cpu
def test_chains_and_members_of_several_devices_have_fast_convolutions():
    layer = LAYERS["2-D"]()

    def one(x, number):
        return (lax.map(layer, x).sum() + number,)

    def members(x):
        plan = Plan(2, 1, 1, stable=False, on_batches=False, spread=True)
        return _map_members(plan, one, x, 1.0)

    def chains(x):
        return map_over_chains(one, "parallel", 2)(x, 1.0)

    x = images(layer)[None].repeat(2, 0)
    for mapped in members, chains:
        fast = with_fast_convolutions(mapped)
        found = list(convolutions(jax.make_jaxpr(fast)(x).jaxpr))
        assert found
        assert all(map(is_fast, found))
        expected = [jax.vmap(layer)(of_one).sum() + 1.0 for of_one in x]
        np.testing.assert_allclose(jax.jit(fast)(x)[0], expected, rtol=1e-4)
