"""Generated layers: every order against one einsum, and their memory and FLOPs."""

import functools
import itertools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from pyrox_ppl.nn import HyperLinear, _contract

C, I, K = 3, 4, 6  # noqa: E741 - the letters of the formula
ORDERS = typing.get_args(_contract.Order)
# How z and x meet: rows of their own, groups, outer products, and axes apart.
BATCHES = {
    "rows": ((7,), (7,)),
    "groups": ((5, 1), (5, 3)),
    "outer product": ((5, 1), (1, 3)),
    "features shared": ((5, 4), (5, 1)),
    "apart": ((2, 1, 5), (1, 3, 5)),
    "interleaved": ((2, 5, 1, 3), (2, 1, 4, 3)),
    "empty": ((0,), (0,)),
    "no features": ((5, 1), (5, 0)),
}


SIZES = ("whole", "in pieces")
# Every pair of order, batch and size; their triples are slow tests.
TRIPLES = [
    pytest.param(
        name,
        order,
        size,
        id=f"{size}-{order}-{name}",
        marks=() if (i + j + k) % 2 == 0 else pytest.mark.slow,
    )
    for i, name in enumerate(BATCHES)
    for j, order in enumerate(ORDERS)
    for k, size in enumerate(SIZES)
]


@pytest.fixture(params=SIZES)
def pieces(request, monkeypatch):
    """Sizes at which the small examples fall into pieces, with a rest, or do not."""
    if request.param == "in pieces":
        monkeypatch.setattr(_contract, "_PIECE", 30)
        monkeypatch.setattr(_contract, "_COLUMNS", 2 * I)


def arrays(batches, seed=0):
    """A generator's weight and bias, contexts, features."""
    of_z, of_x = batches
    rng = np.random.default_rng(seed)
    size = C * I + C
    shapes = [(size, K), (size,), (*of_z, K), (*of_x, I)]
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def by_hand(weight, bias, z, x):
    """The weights of every row, then their products."""
    generated = jnp.einsum("sk,...k->...s", weight, z) + bias
    matrix = generated[..., : C * I].reshape(*generated.shape[:-1], C, I)
    return jnp.einsum("...ci,...i->...c", matrix, x) + generated[..., C * I :]


def with_gradients(function, inputs):
    """The value, and the gradients of a loss that knows every entry; one program."""

    def loss(*inputs):
        value = function(*inputs)
        return jnp.sum(np.random.default_rng(1).normal(size=value.shape) * value**2)

    def both(*inputs):
        return function(*inputs), jax.grad(loss, range(4))(*inputs)

    return jax.jit(both)(*inputs)


@functools.cache
def expected_of(name):
    """What every order must return; under x64."""
    return with_gradients(by_hand, arrays(BATCHES[name]))


def only(monkeypatch, order):
    monkeypatch.setattr(_contract, "cheapest_order", lambda *_: order)


@pytest.mark.rank_promotion  # the sum by hand broadcasts
@pytest.mark.parametrize(("name", "order", "pieces"), TRIPLES, indirect=["pieces"])
def test_every_order_is_the_sum_by_hand_with_its_gradients(
    name, order, pieces, monkeypatch
):
    only(monkeypatch, order)
    with jax.enable_x64(True):
        expected, gradients = expected_of(name)
        inputs = arrays(BATCHES[name])
        ours, got = with_gradients(_contract.generated_linear, inputs)
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10)
        for one, other in zip(got, gradients, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_derivatives_of_second_order_in_either_mode(order, pieces, monkeypatch):
    only(monkeypatch, order)
    with jax.enable_x64(True):
        inputs = tuple(arrays(BATCHES["groups"]))
        function = jax.jit(_contract.generated_linear)
        check_grads(function, inputs, order=2, modes=["fwd", "rev"])


@pytest.mark.parametrize("order", ORDERS)
def test_an_ensemble_of_generators_under_vmap(order, pieces, monkeypatch):
    only(monkeypatch, order)
    members = [arrays(BATCHES["groups"], seed) for seed in range(3)]
    stacked = [jnp.stack(leaves) for leaves in zip(*members, strict=True)]
    together = jax.vmap(_contract.generated_linear)(*stacked)
    for got, inputs in zip(together, members, strict=True):
        np.testing.assert_allclose(
            got, _contract.generated_linear(*inputs), rtol=1e-4, atol=1e-4
        )


def test_the_order_is_the_one_that_multiplies_least():
    sizes = (1, 2, 16, 256)
    for c, i, k, of_z, of_x in itertools.product(sizes, repeat=5):
        order = _contract.cheapest_order((c, i, k), of_z, of_x)
        between = {
            "outer": of_z * of_x * k * i,
            "features": of_x * c * k,
            "weights": of_z * c * i,
        }
        if of_z == of_x == 1:
            assert between[order] == min(between.values())
    assert _contract.cheapest_order((128, 128, 8), 1, 1) == "outer"
    assert _contract.cheapest_order((64, 64, 256), 1, 1) == "weights"
    assert _contract.cheapest_order((1, 64, 16), 1, 1) == "features"
    assert _contract.cheapest_order((64, 64, 16), 1, 100) == "weights"
    assert _contract.cheapest_order((64, 64, 16), 100, 1) == "features"


def compiled(of_z, of_x, width, context, gradient=False):
    """The compiled call of a square HyperLinear on zeros of these batch shapes."""
    layer = HyperLinear.init(width, width, context, key=jax.random.key(0))

    def loss(layer, h, z):
        return jnp.sum(layer(h, z) ** 2)

    function = jax.grad(loss, (0, 1, 2)) if gradient else HyperLinear.__call__
    h, z = jnp.zeros((*of_x, width)), jnp.zeros((*of_z, context))
    return jax.jit(function).lower(layer, h, z).compile()


@pytest.mark.parametrize(("width", "context"), [(64, 8), (64, 96), (128, 64)])
def test_rows_of_their_own_contexts_build_no_weights_for_every_row(width, context):
    rows = 2048
    weights = 4 * rows * width**2
    found = compiled((rows,), (rows,), width, context, gradient=True)
    kept = found.memory_analysis().temp_size_in_bytes
    assert kept < max(weights / 3, 32 * 2**20)
    longer = compiled((4 * rows,), (4 * rows,), width, context, gradient=True)
    growth = longer.memory_analysis().temp_size_in_bytes - kept
    # What grows with the rows is features and contexts, a few times over.
    assert growth < 12 * 4 * 3 * rows * (width + context)


@pytest.mark.parametrize(
    ("of_z", "of_x", "contexts", "rows"),
    [
        ((), (2048,), 1, 2048),
        ((1, 1), (8, 256), 1, 2048),
        ((8, 1), (8, 256), 8, 2048),
        ((8, 1), (1, 256), 8, 2048),
    ],
)
def test_a_layer_is_generated_once_for_all_that_share_it(of_z, of_x, contexts, rows):
    width, context = 32, 64
    generate = 2 * context * (width**2 + width) * contexts
    apply = 2 * rows * width**2
    flops = compiled(of_z, of_x, width, context).cost_analysis()["flops"]
    assert flops < 1.1 * (generate + apply)
