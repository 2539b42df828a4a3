"""HyperNetwork: what it generates, its parameters, and its laws as a module."""

import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, ConditionedINR, FiLM, HyperNetwork

KEY, K = jax.random.key(0), 3
Z = jnp.array([0.5, -1.0, 2.0])


def _field():
    inner = SIREN.init(2, 4, 1, depth=3, key=KEY)
    return ConditionedINR.init(inner, conditioner_cls=FiLM, cond_dim=2, key=KEY)


TARGETS = {
    "MLP": (lambda: eqx.nn.MLP(2, 1, 4, 2, key=KEY), [(2,)]),
    "MLP without biases": (
        lambda: eqx.nn.MLP(2, 1, 4, 1, use_bias=False, key=KEY),
        [(2,)],
    ),
    "scalar MLP": (lambda: eqx.nn.MLP("scalar", "scalar", 4, 1, key=KEY), [()]),
    "SIREN": (lambda: SIREN.init(2, 4, 1, depth=3, key=KEY), [(5, 2)]),
    "Conv2d": (lambda: eqx.nn.Conv2d(2, 3, 3, key=KEY), [(2, 5, 5)]),
    "LayerNorm": (lambda: eqx.nn.LayerNorm(4), [(4,)]),
    "GRUCell": (lambda: eqx.nn.GRUCell(2, 3, key=KEY), [(2,), (3,)]),
    "FiLM": (lambda: FiLM.init(3, 2, key=KEY), [(5, 3), (2,)]),
    "field": (_field, [(5, 2), (2,)]),
    "PReLU": (lambda: eqx.nn.PReLU(0.3), [(4,)]),
}
every_target = pytest.mark.parametrize("name", TARGETS)


def made(name, **kwargs):
    """A target with arbitrary (trained) values, its inputs, and a generator for it."""
    make, shapes = TARGETS[name]
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    target = jax.tree.map(lambda a: a + 0.2 if eqx.is_inexact_array(a) else a, make())
    return target, inputs, HyperNetwork.init(target, K, key=KEY, **kwargs)


def arrays(module):
    return [a for a in jax.tree.leaves(module) if eqx.is_inexact_array(a)]


@every_target
def test_at_zero_context_the_generated_module_is_the_target(name):
    target, inputs, generator = made(name)
    for generated in (
        generator.generate(target, jnp.zeros(K)),
        _amortized(generator, target, jnp.zeros(K)),
    ):
        assert jax.tree.structure(generated) == jax.tree.structure(target)
        np.testing.assert_array_equal(generated(*inputs), target(*inputs))
    away = generator.generate(target, Z)
    assert not np.allclose(away(*inputs), target(*inputs), atol=1e-4)
    for leaf, old in zip(arrays(away), arrays(target), strict=True):
        assert not np.array_equal(leaf, old)
        assert (leaf.shape, leaf.dtype) == (old.shape, old.dtype)


def _amortized(generator, target, z):
    with px.amortize(generator=generator, context=z):
        return jax.tree.map(lambda a: a, _unmarked(px.bind(target, "net"), target))


def _unmarked(bound, like):
    """The values of `bound` in a module that is not marked as bound."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(bound))


@every_target
def test_amortize_and_generate_give_the_same_module(name):
    target, _, generator = made(name)
    by_method = generator.generate(target, Z)
    by_handler = _amortized(generator, target, Z)
    for one, other in zip(arrays(by_method), arrays(by_handler), strict=True):
        np.testing.assert_array_equal(one, other)


@every_target
def test_the_parameters_are_those_of_the_formula(name):
    target, _, generator = made(name)
    sizes = [a.size for a in arrays(target)]
    assert sum(a.size for a in arrays(generator)) == sum(n * (K + 1) for n in sizes)
    with handlers.seed(rng_seed=0), handlers.trace() as trace, px.bayesianize():
        px.bind(generator)
    found = {name: site["value"].shape for name, site in trace.items()}
    expected = {}
    for parameter in _parameters(target):
        path = parameter.name.partition(".")[2]
        root = f"hyper_network.heads.{path}"
        expected[f"{root}.weight"] = (int(np.prod(parameter.shape)), K)
        expected[f"{root}.bias"] = parameter.shape
    assert found == expected


def _parameters(module):
    seen = []
    with px.learn(where=lambda p: seen.append(p) or True):
        px.bind(module)
    return seen


@pytest.mark.parametrize(
    ("cond_dim", "rank", "scale"),
    [(1, None, 0.1), (16, None, 0.5), (1, 4, 0.5), (16, 4, 0.1)],
)
def test_entries_vary_by_the_scale_it_names_whatever_the_context_width(
    cond_dim, rank, scale
):
    small = jax.random.normal(KEY, (64, 64)) * 1e-3
    target = {"w": small, "zero": {"weight": small, "bias": jnp.zeros(64)}}
    generator = HyperNetwork.init(
        target, cond_dim, key=KEY, init_scale=scale, rank=rank
    )
    z = jax.random.normal(jax.random.key(1), (500, cond_dim))
    nets = jax.vmap(lambda z: generator.generate(target, z))(z)
    tolerance = 0.25 if cond_dim == 1 else 0.1
    for leaf, old, expected in (
        (nets["w"], small, 1e-3),
        (nets["zero"]["bias"], jnp.zeros(64), (3 * 64) ** -0.5),
    ):
        rms = np.sqrt(np.mean((np.asarray(leaf) - np.asarray(old)) ** 2))
        assert rms == pytest.approx(scale * expected, rel=tolerance)


def test_a_low_rank_generator_has_the_parameters_of_its_formula():
    mlp = eqx.nn.MLP(256, 256, 256, 1, key=KEY)
    full = eqx.filter_eval_shape(HyperNetwork.init, mlp, 16, key=KEY)
    low = eqx.filter_eval_shape(HyperNetwork.init, mlp, 16, key=KEY, rank=8)
    counts = [sum(a.size for a in jax.tree.leaves(g)) for g in (full, low)]
    assert counts[0] == 2 * (256 * 256 + 256) * 17
    assert counts[1] == 2 * (8 * (256 * 17 + 256) + 256 * 17)
    assert counts[1] < counts[0] / 20


def test_a_low_rank_offset_is_the_product_of_its_factors():
    target, inputs, _ = made("Conv2d")
    generator = HyperNetwork.init(target, K, key=KEY, rank=2)
    moved = jax.tree.map(lambda a: a + 0.3 if eqx.is_inexact_array(a) else a, generator)
    head = moved.heads["weight"]
    left = (head.weight @ Z).reshape(3, 2) + head.bias
    by_hand = target.weight + (left @ head.right.T).reshape(target.weight.shape)
    for net in (moved.generate(target, Z), _amortized(moved, target, Z)):
        np.testing.assert_allclose(net.weight, by_hand, rtol=1e-5)
        assert net(*inputs).shape == (3, 3, 3)
    assert set(vars(moved.heads["bias"])) == {"weight", "bias"}  # a column: a full head


def test_only_what_where_selects_is_generated():
    target, _, generator = made("MLP", where=["*.layers.2.*", "mlp.layers.0.bias"])
    assert list(generator.heads) == [
        "layers.0.bias",
        "layers.2.bias",
        "layers.2.weight",
    ]
    net = generator.generate(target, Z)
    np.testing.assert_array_equal(net.layers[1].weight, target.layers[1].weight)
    assert not np.array_equal(net.layers[2].weight, target.layers[2].weight)
    matrices = HyperNetwork.init(target, K, key=KEY, where=lambda p: len(p.shape) == 2)
    assert list(matrices.heads) == [f"layers.{i}.weight" for i in range(3)]


def test_a_trunk_is_backbone_and_the_heads_are_generators():
    target, inputs, _ = made("MLP")
    trunk = eqx.nn.MLP(K, 5, 6, 1, key=KEY)
    generator = HyperNetwork.init(target, K, key=KEY, trunk=trunk)
    roles = {p.name: p.role for p in _parameters(generator)}
    assert roles["hyper_network.trunk.layers.0.weight"] == "backbone"
    assert {r for n, r in roles.items() if ".heads." in n} == {"generator"}
    assert {r for n, r in roles.items() if ".trunk." in n} == {"backbone"}
    head = generator.heads["layers.0.bias"]
    assert head.weight.shape == (4, 5)
    by_hand = target.layers[0].bias + head.weight @ trunk(Z)
    net = generator.generate(target, Z)
    np.testing.assert_allclose(net.layers[0].bias, by_hand, rtol=1e-6)
    assert net(*inputs).shape == (1,)

    def model():
        with px.bayesianize(), px.amortize(generator=generator, context=Z):
            px.bind(target, "net")

    names = handlers.trace(handlers.seed(model, 0)).get_trace()
    assert len(names) == 12
    assert all(".heads." in name for name in names)


def test_a_module_of_this_package_is_a_trunk_too():
    target, _, _ = made("MLP")
    trunk = SIREN.init(K, 4, 2, depth=2, key=KEY)
    generator = HyperNetwork.init(target, K, key=KEY, trunk=trunk)

    def model():
        with (
            px.bayesianize(where=px.is_backbone),
            px.amortize(generator=generator, context=Z),
        ):
            return px.bind(target, "net")

    names = handlers.trace(handlers.seed(model, 0)).get_trace()
    assert set(names) == {
        f"hyper_network.trunk.layers.{i}.{leaf}"
        for i in range(2)
        for leaf in ("weight", "bias")
    }


def cast(tree):
    return jax.tree.map(
        lambda a: a.astype(float) if eqx.is_inexact_array(a) else a, tree
    )


@pytest.mark.parametrize("rank", [None, 1])
def test_gradients_agree_with_finite_differences_in_float64(rank):
    with jax.enable_x64(True):
        target, inputs, generator = made("MLP", rank=rank)
        target, generator = cast(target), cast(generator)
        dynamic, static = eqx.partition(generator, eqx.is_inexact_array)
        flat, unravel = ravel_pytree((dynamic, *cast((Z, inputs[0]))))

        @jax.jit
        def loss(flat):
            dynamic, z, x = unravel(flat)
            return eqx.combine(dynamic, static).generate(target, z)(x).sum()

        gradient = jax.grad(loss)(flat)
        for seed in range(3):
            step = 1e-6 * np.random.default_rng(seed).normal(size=flat.size)
            slope = (loss(flat + step) - loss(flat - step)) / 2e-6
            np.testing.assert_allclose(gradient @ step / 1e-6, slope, rtol=1e-5)


def test_it_is_a_plain_module():
    target, inputs, generator = made("MLP")
    again = jax.tree.unflatten(*jax.tree.flatten(generator)[::-1])
    np.testing.assert_array_equal(
        again.generate(target, Z)(*inputs), generator.generate(target, Z)(*inputs)
    )
    jitted = eqx.filter_jit(lambda g, t, z, x: g.generate(t, z)(x))
    np.testing.assert_allclose(
        jitted(generator, target, Z, *inputs),
        generator.generate(target, Z)(*inputs),
        rtol=1e-5,
    )
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, generator)
    file.seek(0)
    like = HyperNetwork.init(target, K, key=jax.random.key(9))
    assert not eqx.tree_equal(like, generator)
    assert eqx.tree_equal(eqx.tree_deserialise_leaves(file, like), generator)
    assert eqx.tree_equal(HyperNetwork.init(target, K, key=KEY), generator)
    ensemble = eqx.filter_vmap(lambda key: HyperNetwork.init(target, K, key=key))(
        jax.random.split(KEY, 2)
    )
    member = jax.tree.map(lambda a: a[1] if eqx.is_array(a) else a, ensemble)
    alone = HyperNetwork.init(target, K, key=jax.random.split(KEY, 2)[1])
    for one, other in zip(arrays(member), arrays(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
