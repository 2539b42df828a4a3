"""Rule 4: bound stays bound: what is read already is not read again."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import pytest
from models import H, Z, make_field, make_film, make_mlp, run, sites

import pyrox_ppl as px
from pyrox_ppl.nn import HyperNetwork


class Counter(numpyro.primitives.Messenger):
    """Counts the parameter messages that pass."""

    def __init__(self):
        super().__init__()
        self.names = []

    def process_message(self, msg):
        if msg["type"] == "parameter":
            self.names.append(msg["name"])


def test_a_composite_reads_its_conditioners_once_as_a_whole():
    counter = Counter()
    with counter:
        make_field()(jnp.ones(2), Z)
    assert len(counter.names) == len(set(counter.names)) == 14
    assert all(name.startswith("conditioned_inr.") for name in counter.names)


@pytest.mark.parametrize(
    "transform",
    [
        lambda net, x: net(x, Z),
        lambda net, x: jax.vmap(lambda row: net(row, Z))(x[None]),
        lambda net, x: jax.jit(lambda row: net(row, Z))(x),
        lambda net, x: eqx.filter_jit(net)(x, Z),
        lambda net, x: jax.lax.scan(
            lambda c, row: (net(row, Z).sum(), c), 0.0, x[None]
        ),
        lambda net, x: jax.checkpoint(lambda row: net(row, Z))(x),
        lambda net, x: jax.tree.map(lambda leaf: leaf * 1.0, net)(x, Z),
        lambda net, x: eqx.filter_vmap(lambda n: n(x, Z), axis_size=2, in_axes=None)(
            net
        ),
    ],
    ids=["call", "vmap", "jit", "filter_jit", "scan", "checkpoint", "tree_map", "ens"],
)
def test_a_bound_module_sends_nothing_under(transform):
    counter = Counter()
    with counter:
        net = px.bind(make_field())
        read = len(counter.names)
        transform(net, jnp.ones(2))
    assert read == len(counter.names) == 14


def test_binding_a_bound_module_returns_it():
    with Counter():
        net = px.bind(make_film())
        assert px.bind(net) is net
        assert px.bind(net, "another") is net


def test_the_module_itself_is_untouched():
    film = make_film()
    with Counter():
        bound = px.bind(film)
    assert film._bound is False
    assert bound._bound is True
    assert bound.generator.weight is film.generator.weight


def test_a_bound_conditioner_inside_another_module_is_not_read_again():
    film = make_film()

    def model():
        with px.bayesianize(where="*"):
            bound = px.bind(film, "film")
            both = px.bind({"film": bound, "mlp": make_mlp()}, "both")
        return both["film"].generator.weight, bound.generator.weight

    names = list(sites(model))
    assert len(names) == 6
    assert not any(name.startswith("both.film") for name in names)
    inside, outside = run(model)
    assert jnp.array_equal(inside, outside)


def test_a_bound_plain_network_inside_another_module_is_not_read_again():
    mlp = make_mlp()

    def model():
        with px.bayesianize(where="*"):
            px.bind([px.bind(mlp, "mlp"), make_film()], "both")

    names = list(sites(model))
    assert len(names) == 6
    assert not any(name.startswith("both.0") for name in names)


def test_a_stack_without_handlers_gets_the_module_back_and_no_message(monkeypatch):
    def refuse(read, plate):
        raise AssertionError("a message was sent")

    monkeypatch.setattr("pyrox_ppl._bind.read_value", refuse)
    film = make_film()
    assert px.bind(film) is film
    film(H, Z)


def test_a_deterministic_call_inside_a_model_leaves_no_trace():
    field = make_field()

    def model():
        return field(jnp.ones(2), Z)

    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
    assert trace == {}
    assert jnp.array_equal(run(model), field(jnp.ones(2), Z))


def test_a_bound_generator_sends_nothing_and_its_block_reads_the_target_alone():
    mlp, counter = make_mlp(), Counter()
    generator = HyperNetwork.init(mlp, 2, key=jax.random.key(0))
    with counter:
        generator = px.bind(generator)
        assert len(counter.names) == 8
        eqx.filter_jit(generator)(Z)
        jax.vmap(generator)(Z[None])
        generator.generate(mlp, Z)
        generator.map(mlp, jnp.ones((3, 4, 2)), jnp.ones((3, 2)), batch_size=2)
        assert len(counter.names) == 8
        with px.amortize(generator=generator, context=Z):
            px.bind(mlp, "net")
    # The generated values are the block's: a handler further out is not asked.
    assert len(counter.names) == 8


def test_what_is_generated_is_not_read_again_as_part_of_another_module():
    mlp = make_mlp()
    generator = HyperNetwork.init(mlp, 2, key=jax.random.key(0))

    def model():
        with px.bayesianize(), px.amortize(generator=px.bind(generator), context=Z):
            net = px.bind(mlp, "net")
            px.bind({"net": net, "own": jnp.zeros(2)}, "both")

    names = [name for name in sites(model) if not name.startswith("hyper_network")]
    assert names == ["both.own"]
