"""Rule 3: tied leaves stay tied: the same array at two paths is one site."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from models import make_mlp, run, sites

import pyrox_ppl as px
from pyrox_ppl.nn import HyperNetwork


class Tied(eqx.Module):
    """An encoder and a decoder that share one matrix."""

    encoder: eqx.Module
    decoder: dict


def make_tied():
    mlp = make_mlp()
    return Tied(mlp, {"copy": mlp.layers[0].weight, "own": jnp.zeros(2)})


def model(tree):
    with px.bayesianize():
        return px.bind(tree, "tied")


def test_a_tied_array_is_one_site_under_its_first_path():
    names = list(sites(model, make_tied()))
    assert names.count("tied.encoder.layers.0.weight") == 1
    assert "tied.decoder.copy" not in names
    assert "tied.decoder.own" in names


def test_both_places_hold_the_same_value():
    bound = run(model, make_tied())
    assert bound.encoder.layers[0].weight is bound.decoder["copy"]


def test_equal_but_separate_arrays_are_two_sites():
    assert len(sites(model, {"a": jnp.zeros(2), "b": jnp.zeros(2)})) == 2


def test_shared_layers_of_equinox_stay_shared():
    mlp = make_mlp()
    tree = Tied(mlp, {"copy": make_mlp(1).layers[0].weight})
    shared = eqx.nn.Shared(
        tree, lambda t: t.decoder["copy"], lambda t: t.encoder.layers[0].weight
    )
    names = list(sites(model, shared))
    assert len(names) == 4
    both = run(model, shared)()
    np.testing.assert_array_equal(both.encoder.layers[0].weight, both.decoder["copy"])


def test_a_tied_array_is_one_param_and_one_head():
    tree = make_tied()

    def learned():
        with px.learn():
            return px.bind(tree, "tied")

    names = list(sites(learned, types=("param",)))
    assert len(names) == 5
    generator = HyperNetwork.init(tree, 2, key=jax.random.key(0))
    assert "decoder.copy" not in generator.heads
    assert len(generator.heads) == 5

    def generated():
        with px.amortize(generator=generator, context=jnp.ones(2)):
            return px.bind(tree, "tied")

    for bound in (run(learned), run(generated), generator.generate(tree, jnp.ones(2))):
        assert bound.encoder.layers[0].weight is bound.decoder["copy"]
