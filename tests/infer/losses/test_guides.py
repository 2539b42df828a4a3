"""Guides that are more than one normal for each weight, and weighted densities."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoGuideList, AutoLowRankMultivariateNormal
from numpyro.infer.autoguide import AutoNormal as Normal

import pyrox_ppl as px
from pyrox_ppl.infer import (
    AutoFlatNormal,
    CompiledSVI,
    LocalReparam_ELBO,
    init_to_stored,
)
from pyrox_ppl.infer.losses import _elbo

KEY = jr.key(0)
NET = eqx.nn.MLP(2, 1, 4, 1, activation=jnp.tanh, key=KEY)
X = jr.normal(jr.key(1), (12, 2))
Y = jnp.sin(X[:, 0])
SHAPES = {"net.layers.0.weight": (4, 2), "net.layers.0.bias": (4,)}
SHAPES |= {"net.layers.1.weight": (1, 4), "net.layers.1.bias": (1,)}


def model(x, y=None):
    with px.bayesianize():
        net = px.bind(NET, "net")
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.7), obs=y)


def z_score(model, guide, draws=3000):
    """The standardised difference of the mean loss from that of NumPyro."""
    svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    params = svi.get_params(svi.init(KEY, X, y=Y))

    def one(key):
        return [
            loss.loss(key, params, model, guide, X, y=Y)
            for loss in (Trace_ELBO(), LocalReparam_ELBO())
        ]

    theirs, ours = jax.jit(jax.vmap(one))(jr.split(jr.key(5), draws))
    error = jnp.sqrt((theirs.var() + ours.var()) / draws)
    return abs(theirs.mean() - ours.mean()) / error


def normal(name, shift=0.0):
    law = dist.Normal(jnp.full(SHAPES[name], 0.3) + shift, 0.5)
    return numpyro.sample(name, law.to_event(len(SHAPES[name])))


def chained(x, y=None):
    """The second layer is drawn given the first."""
    first = normal("net.layers.0.weight")
    normal("net.layers.0.bias")
    normal("net.layers.1.weight", -2.0 * jnp.tanh(first.sum(1))[None])
    normal("net.layers.1.bias")


def coupled_by_another(x, y=None):
    """All layers are drawn given a number that is no site of the model."""
    auxiliary = {"is_auxiliary": True}
    shift = numpyro.sample("shift", dist.Normal(0.0, 1.0), infer=auxiliary)
    for name in SHAPES:
        normal(name, 0.5 * shift)


def weighted_by_a_draw(x, y=None):
    """The guide's own density depends on a draw."""
    numpyro.factor("more", jnp.sum(normal("net.layers.0.bias")))
    for name in SHAPES.keys() - {"net.layers.0.bias"}:
        normal(name)


def two_guides(model):
    guide = AutoGuideList(model)
    for cls, layer in ((Normal, "0"), (AutoLowRankMultivariateNormal, "1")):
        sites = [name for name in SHAPES if f"layers.{layer}" in name]
        part = handlers.block(model, expose=sites)
        guide.append(cls(part, init_loc_fn=init_to_stored))
    return guide


@pytest.mark.parametrize(
    "guide",
    [coupled_by_another, pytest.param(weighted_by_a_draw, marks=pytest.mark.slow)],
)
def test_a_guide_by_hand_has_numpyros_loss_on_average(guide):
    assert z_score(model, guide) < 5.0


@pytest.mark.slow
def test_a_guide_of_two_guides_has_numpyros_loss_on_average():
    assert z_score(model, two_guides(model)) < 5.0


def test_a_weight_of_which_the_guide_uses_the_draw_is_drawn_once(monkeypatch):
    assert z_score(model, chained) < 5.0
    monkeypatch.setattr(_elbo, "find_conditions", lambda *_: {})
    assert z_score(model, chained) > 8.0


class ScaledFlat(AutoFlatNormal):
    """A flat guide whose density counts for less."""

    def __call__(self, *args, **kwargs):
        with handlers.scale(scale=0.3):
            return super().__call__(*args, **kwargs)


def make_normal(init_scale=0.5):
    return Normal(model, init_loc_fn=init_to_stored, init_scale=init_scale)


@pytest.mark.parametrize(
    ("of_model", "guide"),
    [
        pytest.param(0.3, make_normal(), id="model", marks=pytest.mark.slow),
        pytest.param(0.3, ScaledFlat(model, init_scale=0.5), id="both-flat"),
        pytest.param(
            jnp.array(0.3),
            AutoFlatNormal(model, init_scale=0.5),
            id="model-flat",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            1.0,
            handlers.scale(make_normal(), scale=0.3),
            id="guide",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_scaled_densities_have_numpyros_loss_on_average(of_model, guide):
    assert z_score(handlers.scale(model, scale=of_model), guide) < 5.0


def test_a_mutable_state_may_hold_a_weight():
    def with_state(x, y=None):
        with px.bayesianize():
            net = px.bind(NET, "net")
        state = numpyro.primitives.mutable("state", {"mean": jnp.zeros((4, 2))})
        weight = net.layers[0].weight
        state["mean"] = 0.5 * state["mean"] + 0.5 * weight
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.7), obs=y)

    guide = Normal(with_state, init_loc_fn=init_to_stored, init_scale=0.01)
    svi = CompiledSVI(with_state, guide, numpyro.optim.Adam(0.01), LocalReparam_ELBO())
    state = svi.init(KEY, X, y=Y)
    before = state.mutable_state["state"]["mean"]
    state, _ = jax.jit(svi.update)(state, X, y=Y)
    mean = state.mutable_state["state"]["mean"]
    assert jnp.abs(2 * mean - before - NET.layers[0].weight).max() < 0.1
    explanation = px.explain(with_state, X, y=Y, loss=LocalReparam_ELBO())
    found = {row.name: row.noise for row in explanation.parameters}
    assert found["net.layers.0.weight"].startswith("one draw: a result")
    assert found["net.layers.1.weight"] == "drawn per row"
