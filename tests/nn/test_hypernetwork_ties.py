"""HyperNetwork and arrays that stand at several places: tied if the target's are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import sites

import pyrox_ppl as px
from pyrox_ppl.nn import HyperNetwork

KEY, Z = jax.random.key(0), jnp.array([0.5, -1.0, 2.0])
W = jax.random.normal(KEY, (4, 4))
TIED = {"dec": W, "enc": W, "own": jnp.arange(4.0)}


def make(target=TIED, **kwargs):
    return HyperNetwork.init(target, 3, key=KEY, init_scale=1.0, **kwargs)


def by_hand(generator):
    """The one value of the tied matrix."""
    head = generator.heads["dec"]
    if hasattr(head, "right"):
        left = (np.asarray(head.weight) @ Z).reshape(head.bias.shape) + head.bias
        return W + left @ head.right.T
    return W + (np.asarray(head.weight) @ Z).reshape(4, 4)


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_call_replaces_every_copy_of_a_tied_array(rank, compiled):
    generator = make(rank=rank)
    assert sorted(generator.heads) == ["dec", "own"]
    same = []

    def generate(target):
        net = generator.generate(target, Z)
        same.append(net["dec"] is net["enc"])
        return net

    net = (jax.jit(generate) if compiled else generate)(TIED)
    assert same == [True]
    for path in ("dec", "enc"):
        np.testing.assert_allclose(net[path], by_hand(generator), rtol=1e-5, atol=1e-6)


def test_so_does_map_and_amortize():
    class Net(eqx.Module):
        enc: jax.Array
        dec: jax.Array

        def __call__(self, x):
            return self.dec @ jnp.tanh(self.enc @ x)

    tied, x = Net(W, W), jnp.arange(4.0)
    generator = make(tied)
    value = W + (generator.heads["enc"].weight @ Z).reshape(4, 4)
    expected = value @ jnp.tanh(value @ x)

    @eqx.filter_jit
    def mapped(net):
        return generator.map(net, x[None, None], Z[None])[0, 0]

    @eqx.filter_jit
    def amortized(net):
        with px.amortize(generator=generator, context=Z):
            return px.bind(net, "net")(x)

    with px.amortize(generator=generator, context=Z):
        plain = px.bind(tied, "net")(x)
    for y in (mapped(tied), amortized(tied), plain):
        np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_a_compiled_model_has_no_site_of_a_copy():
    generator = make()

    @jax.jit
    def names(target):
        def model():
            with px.bayesianize():
                generator.generate(target, Z)

        found.extend(sites(model))

    found = []
    names(TIED)
    assert found == [
        f"hyper_network.heads.{path}.{leaf}"
        for path in ("dec", "own")
        for leaf in ("weight", "bias")
    ]


def test_the_values_are_there_for_every_place():
    values = make()(Z)
    assert sorted(values) == ["dec", "enc", "own"]
    assert values["dec"] is values["enc"]


@pytest.mark.parametrize("where", ["*.enc", "*.dec", ["*.e*"]])
def test_where_takes_a_tied_array_by_any_of_its_places(where):
    generator = make(where=where)
    assert list(generator.heads) == ["dec"]
    assert sorted(generator(Z)) == ["dec", "enc"]


def test_a_target_that_is_tied_otherwise_is_another_one():
    untied = make({"dec": W, "enc": W + 0.0, "own": TIED["own"]})
    assert sorted(untied.heads) == ["dec", "enc", "own"]
    with pytest.raises(ValueError, match=r"another target: \('dec', 'enc'\) of dict"):
        untied.generate(TIED, Z)
    both = make().generate({"dec": W, "enc": W + 0.0, "own": TIED["own"]}, Z)
    np.testing.assert_array_equal(both["dec"], both["enc"])


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_head_is_not_tied_to_its_target(rank, compiled):
    line = eqx.nn.Linear(3, 4, key=KEY)

    class Both(eqx.Module):
        net: eqx.nn.Linear
        hyper: HyperNetwork

    def names(line):
        both = Both(line, HyperNetwork.init(line, 2, key=KEY, rank=rank))

        def model():
            with px.bayesianize(where="*"):
                px.bind(both, "both")

        found.extend(sites(model))

    found = []
    (eqx.filter_jit(names) if compiled else names)(line)
    heads = [f"hyper.heads.{p}.{leaf}" for p in ("bias", "weight") for leaf in "wb"]
    assert len(found) == 2 + len(heads) + (rank or 0)
    assert {"both.net.weight", "both.net.bias"} <= set(found)
    assert "both.hyper.heads.bias.bias" in found
