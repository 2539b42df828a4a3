"""HyperNetwork: one network per context, bad input, and training at a low rank."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, HyperNetwork

KEY = jax.random.key(0)
NET = eqx.nn.MLP(2, 1, 4, 1, key=KEY)
Z = jax.random.normal(KEY, (7, 3))
X = jax.random.normal(jax.random.key(1), (7, 5, 2))


def make(target=NET, **kwargs):
    return HyperNetwork.init(target, 3, key=KEY, **kwargs)


@pytest.mark.parametrize("target", [NET, SIREN.init(2, 4, 1, depth=2, key=KEY)])
@pytest.mark.parametrize("rank", [None, 1])
def test_map_is_the_loop_over_contexts(target, rank):
    generator = make(target, rank=rank, init_scale=1.0)
    loop = np.stack(
        [jax.vmap(generator.generate(target, Z[i]))(X[i]) for i in range(7)]
    )
    assert np.std(loop, axis=0).max() > 0.01
    for batch_size in (None, 3):
        y = generator.map(target, X, Z, batch_size=batch_size)
        np.testing.assert_allclose(y, loop, rtol=2e-5, atol=1e-6)
    shared = generator.map(target, X[:1], Z, batch_size=2)
    by_copies = generator.map(target, jnp.broadcast_to(X[:1], X.shape), Z)
    np.testing.assert_allclose(shared, by_copies, rtol=2e-5, atol=1e-6)
    jitted = eqx.filter_jit(lambda g, t, x, z: g.map(t, x, z, batch_size=20))
    y = jitted(generator, target, X, Z)
    np.testing.assert_allclose(y, loop, rtol=2e-5, atol=1e-6)


def test_the_batch_size_bounds_the_memory():
    wide = eqx.nn.MLP(2, 1, 64, 2, key=KEY)
    generator = make(wide)
    z = jnp.ones((256, 3))

    def mebibytes(batch_size):
        call = jax.jit(lambda z: generator.map(wide, X[:1], z, batch_size=batch_size))
        return call.lower(z).compile().memory_analysis().temp_size_in_bytes / 2**20

    # 256 networks of 4,481 weights are 4.4 MiB, 8 of them 0.14.
    assert mebibytes(None) > 4
    assert mebibytes(8) < 0.6


def test_under_a_handler_the_rest_of_the_network_is_read_once():
    generator = make(where="*.weight")

    def model(batch_size):
        with px.bayesianize():
            return generator.map(NET, X, Z, batch_size=batch_size)

    found = handlers.trace(handlers.seed(model, 0)).get_trace(3)
    roots = [name.split(".")[0] for name in found]
    assert roots.count("mlp") == 2  # the biases
    assert roots.count("hyper_network") == 4
    values = {name: site["value"] for name, site in found.items()}

    def one(x, z):
        with px.bayesianize(), px.amortize(generator=generator, context=z):
            return jax.vmap(px.bind(NET))(x)

    substituted = handlers.seed(handlers.substitute(one, values), 0)
    by_hand = [substituted(X[i], Z[i]) for i in range(7)]
    np.testing.assert_allclose(
        handlers.seed(model, 0)(3), np.stack(by_hand), rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("x", "z"),
    [(X, Z[0]), (X[:2], Z), (X, Z[None]), (X[0, 0, 0], Z), (X[:, 0, 0], Z)],
)
def test_contexts_and_points_that_do_not_fit_are_named(x, z):
    with pytest.raises(ValueError, match=r"must be points \(B, P"):
        make().map(NET, x, z)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_no_points_and_no_contexts_have_no_values(batch_size):
    generator = make()
    for x, z in (((7, 0, 2), 7), ((1, 0, 2), 7), ((1, 4, 2), 0), ((0, 4, 2), 0)):
        y = generator.map(NET, jnp.ones(x), Z[:z], batch_size=batch_size)
        assert y.shape == (z, x[1], 1)


def test_points_of_a_wrong_width_are_named():
    for batch_size in (None, 2):
        with pytest.raises(ValueError, match=r"x has.*MLP does not take.*shape \(3,\)"):
            make().map(NET, jnp.ones((7, 5, 3)), Z, batch_size=batch_size)


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_parameters_of_any_size_vary_in_proportion(size):
    w = size * jax.random.normal(KEY, (20, 20))
    generator = HyperNetwork.init({"w": w}, 1, key=KEY, init_scale=0.1)
    offset = (generator(jnp.ones(1))["w"] - w) / np.float32(size)
    assert float(jnp.std(offset)) == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("width", [0, 1, 4])
def test_a_context_of_a_wrong_width_is_named(width):
    generator, z = make(), jnp.ones(width)
    for call in (
        lambda: generator(z),
        lambda: generator.generate(NET, z),
        lambda: generator.map(NET, X, z[None]),
    ):
        with pytest.raises(ValueError, match=rf"\({width},\)|{width}\).*cond_dim=3"):
            call()
    with (
        pytest.raises(ValueError, match="cond_dim=3"),
        px.amortize(generator=generator, context=z),
    ):
        px.bind(NET)
    with pytest.raises(ValueError, match=r"one context of shape.*jax\.vmap"):
        generator(Z)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"cond_dim": 0}, "cond_dim must be a positive integer"),
        ({"init_scale": 0.0}, "init_scale must be a positive number"),
        ({"rank": 0}, "rank must be a positive integer"),
        ({"rank": 64}, r"rank=64 has no effect.*\(4, 2\)"),
        ({"where": "*.bias", "rank": 1}, "rank=1 has no effect"),
        ({"where": "*.baias"}, r"where='\*\.baias'.*mlp\.layers\.0\.bias"),
        ({"where": lambda p: False}, "would generate no parameter of MLP"),
        ({"trunk": lambda z: z.sum()}, "trunk must return one vector"),
        ({"trunk": eqx.nn.MLP(4, 5, 6, 1, key=KEY)}, r"MLP does not take.*\(3,\)"),
        ({"trunk": lambda z: (z, z)}, "trunk must return one vector"),
        ({"trunk": lambda z: jnp.outer(z, z)}, r"got \(3, 3\)"),
        ({"target": jnp.ones(2)}, "bare array"),
        ({"target": abs}, "would generate no parameter"),
    ],
)
def test_bad_arguments_are_named(kwargs, match):
    arguments = {"target": NET, "cond_dim": 3, "key": KEY} | kwargs
    with pytest.raises(ValueError, match=match):
        HyperNetwork.init(**arguments)


@pytest.mark.wrong_types
def test_arguments_of_no_form_are_refused():
    with pytest.raises(TypeError, match="where must be a glob"):
        make(where=[])
    tree = {"c": jnp.ones(2, jnp.complex64), "w": jnp.ones(2)}
    with pytest.raises(TypeError, match=r"'dict\.c' is complex"):
        make(tree)
    assert list(make(tree, where="*.w").heads) == ["w"]


def test_keys_with_dots_and_slashes_keep_their_heads_apart():
    tree = {"a": jnp.ones(2), "a.weight": jnp.ones((2, 2)), "b/c": jnp.ones(1)}
    generator = make(tree)
    assert list(generator.heads) == ["a", "a.weight", "b.c"]

    def model():
        with px.bayesianize(), px.amortize(generator=generator, context=Z[0]):
            px.bind(tree, "tree")

    names = handlers.trace(handlers.seed(model, 0)).get_trace()
    assert len(names) == 6
    assert "hyper_network.heads.a.weight.weight" in names


@pytest.mark.slow
def test_a_low_rank_generator_trains_to_the_loss_of_the_full_one():
    """Two noisy tasks, one context each: both reach the same loss within 10 %."""
    net_key, key, z_key, x_key, noise_key = jax.random.split(KEY, 5)
    net = eqx.nn.MLP(256, 256, 256, 1, activation=jnp.tanh, key=net_key)
    z = jax.random.normal(z_key, (2, 16))
    phase = jax.random.uniform(x_key, (256, 1), maxval=2 * jnp.pi)
    angle = phase + (jnp.arange(256) / 20)[None]
    x = jnp.broadcast_to(jnp.sin(angle)[None], (2, 256, 256))
    shape = jnp.sin(jnp.arange(256) / 10)[None]
    tasks = jnp.stack([jnp.sin(2 * phase) * shape, jnp.cos(phase) * shape])
    y = tasks + 0.1 * jax.random.normal(noise_key, tasks.shape)

    def train(**kwargs):
        generator = HyperNetwork.init(net, 16, key=key, **kwargs)
        size = sum(a.size for a in jax.tree.leaves(eqx.filter(generator, eqx.is_array)))
        arrays, static = eqx.partition(generator, eqx.is_array)
        optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, 300))

        def loss(arrays):
            y_hat = eqx.combine(arrays, static).map(net, x, z)
            return jnp.mean((y_hat - y) ** 2)

        def step(carry, _):
            arrays, state = carry
            value, gradient = jax.value_and_grad(loss)(arrays)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(arrays, updates), state), value

        start = (arrays, optimiser.init(arrays))
        losses = jax.jit(lambda c: jax.lax.scan(step, c, length=300)[1])(start)
        return size, losses

    (full_size, full), (low_size, low) = train(), train(rank=8)
    print(f"parameters {low_size} of {full_size}: 1/{full_size / low_size:.1f}")
    print(f"losses {float(low[-1]):.5f} and {float(full[-1]):.5f}")
    assert low_size < full_size / 20
    assert float(full[-1]) < 0.1 * float(full[0])
    assert float(low[-1]) <= 1.1 * float(full[-1])
