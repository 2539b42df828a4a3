"""Running state is never a parameter: bind leaves it constant."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from models import run, sites

import pyrox_ppl as px
from pyrox_ppl.nn import HyperNetwork

KEY = jax.random.key(0)


class Net(eqx.Module):
    """A layer whose weight is also what a state starts at."""

    weight: jax.Array
    index: eqx.nn.StateIndex

    def __init__(self):
        self.weight = jnp.ones(3)
        self.index = eqx.nn.StateIndex({"mean": self.weight, "count": jnp.zeros(())})


def norm(mode):
    return eqx.nn.BatchNorm(3, axis_name="batch", mode=mode)


def spectral():
    layer = eqx.nn.Linear(3, 3, key=KEY)
    return eqx.nn.SpectralNorm(layer, weight_name="weight", key=KEY)


def spectral_convolution():
    layer = eqx.nn.Conv1d(2, 3, 2, key=KEY)
    return eqx.nn.SpectralNorm(layer, weight_name="weight", key=KEY)


MADE = {
    "batch": (lambda: norm("batch"), {"weight", "bias"}),
    "ema": (lambda: norm("ema"), {"weight", "bias"}),
    "spectral": (spectral, {"layer.weight", "layer.bias"}),
    "spectral convolution": (spectral_convolution, {"layer.weight", "layer.bias"}),
    "own": (Net, {"weight"}),
}
HANDLERS = {"bayesianize": px.bayesianize, "learn": px.learn}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("name", MADE)
def test_the_start_of_a_running_state_is_no_site(name, handler):
    make, expected = MADE[name]
    module = make()

    def model():
        with HANDLERS[handler]():
            return px.bind(module, "net")

    found = sites(model, types=("sample", "param"))
    assert set(found) == {f"net.{path}" for path in expected}
    for ours, stored in zip(states(run(model)), states(module), strict=True):
        assert ours is stored


def states(module):
    nodes = jax.tree.leaves(module, is_leaf=lambda n: isinstance(n, eqx.nn.StateIndex))
    indices = [n for n in nodes if isinstance(n, eqx.nn.StateIndex)]
    assert indices
    return jax.tree.leaves(indices)


@pytest.mark.parametrize("name", MADE)
def test_a_state_beside_its_module_is_no_site(name):
    make, expected = MADE[name]
    module, state = eqx.nn.make_with_state(make)()

    def model():
        with px.bayesianize():
            return px.bind((module, state), "net")

    assert set(sites(model)) == {f"net.0.{path}" for path in expected}
    bound = run(model)[1]
    for ours, stored in zip(
        jax.tree.leaves(bound), jax.tree.leaves(state), strict=True
    ):
        np.testing.assert_array_equal(ours, stored)


@pytest.mark.parametrize("name", MADE)
def test_a_hypernetwork_has_no_head_for_it_and_explain_no_row(name):
    make, expected = MADE[name]
    module = make()
    assert set(HyperNetwork.init(module, 2, key=KEY).heads) == expected

    def model():
        with px.bayesianize():
            px.bind(module, "net")

    rows = {row.name for row in px.explain(model).parameters}
    assert rows == {f"net.{path}" for path in expected}


@pytest.mark.parametrize("name", MADE)
def test_inference_mode_and_an_ensemble_have_the_same_parameters(name):
    make, expected = MADE[name]
    ensemble = eqx.filter_vmap(lambda _: eqx.nn.make_with_state(make)())(jnp.arange(3))

    def model():
        with px.bayesianize():
            px.bind(eqx.nn.inference_mode(make()), "net")
            px.bind(ensemble, "members")

    at_rest = {f"net.{path}" for path in expected}
    assert set(sites(model)) == at_rest | {f"members.0.{path}" for path in expected}


@pytest.mark.rank_promotion
@pytest.mark.parametrize("name", MADE)
def test_members_of_a_plate_have_a_state_each(name):
    make, expected = MADE[name]
    pair = eqx.nn.make_with_state(make)()

    def model():
        with px.bayesianize(), numpyro.plate("member", 4):
            return px.bind(pair, "net", plate="member")

    assert set(sites(model)) == {f"net.0.{path}" for path in expected}
    for ours, stored in zip(
        *map(jax.tree.leaves, (run(model)[1], pair[1])), strict=True
    ):
        np.testing.assert_array_equal(ours, np.stack(4 * [stored]))


def test_a_bound_batch_norm_runs_with_its_state():
    module, state = eqx.nn.make_with_state(norm)("batch")
    x = jax.random.normal(KEY, (6, 3))

    def model():
        with px.bayesianize():
            net = px.bind(module, "net")
        call = jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return call(x, state)[0], net

    y, net = run(model)
    x, weight, bias = (np.asarray(value) for value in (x, net.weight, net.bias))
    by_hand = (x - x.mean(0)) / np.sqrt(x.var(0) + module.eps) * weight + bias
    np.testing.assert_allclose(y, by_hand, rtol=1e-3, atol=1e-4)
