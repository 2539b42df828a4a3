"""Every crossing predicted, and its modules brought back: against the hand."""

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
import pytest
from crossing_runs import (
    CHAINS,
    CLOSE,
    DRAWS,
    KEY,
    NUMBER,
    check_noise,
    check_prediction,
    over,
    own,
    state_of,
)
from numpyro.infer import Predictive

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledPredictive

__all__ = ["own"]
pytestmark = pytest.mark.rank_promotion
TIED = {"enc": "dec"}
SOME = ("mlp-NonCentered", "plate-hierarchical", "learned-hierarchical", "noisy-fan_in")


def called_alone(crossing):
    """Whether the module itself takes the inputs."""
    return crossing.kind.inputs is not None


def leaves_of(module):
    """The arrays of a module by path."""
    leaves = jtu.tree_flatten_with_path(module)[0]
    named = {jtu.keystr(path, simple=True, separator="."): v for path, v in leaves}
    return {path: np.asarray(v) for path, v in named.items() if eqx.is_array(v)}


def check_leaves(own, module, theta):
    """The parameters of a module are those by hand, at every place that is tied."""
    found = leaves_of(module)
    for path in own.crossing.kind.fan_in:
        leading = found[path].ndim - own.crossing.stored()[path].ndim
        expected = np.asarray(theta[path])
        if own.crossing.kind.groups:  # an axis of the plate's place among others
            expected = expected.reshape(found[path].shape)
        assert found[path].shape[:leading] == expected.shape[:leading]
        np.testing.assert_allclose(found[path], expected, err_msg=path, **CLOSE)
    for other, path in TIED.items():
        if other in found:
            np.testing.assert_array_equal(found[other], found[path])


@over(often=SOME, where=called_alone)
def test_a_module(own):
    x = own.crossing.new_x
    ours = px.predict(
        own.crossing.kind.module,
        own.draws,
        *own.crossing.kind.inputs(x, own.state),
        **own.called,
        # The state is the model's; the module is given it as an input.
        params={n: v for n, v in own.params.items() if n != "state"},
    )
    assert ours.mean.shape == own.crossing.y_at(x).shape
    check_prediction(ours, own.f(x))


@over(
    where=called_alone,
    often=("mlp-horseshoe", "state-normal", "ties-hierarchical"),
)
def test_a_module_of_a_tree(own):
    x = own.crossing.new_x
    inputs = own.crossing.kind.inputs(x, own.state)
    size = None if own.crossing.kind.groups else 3  # members are no points
    ours = px.predict(
        own.crossing.kind.module, own.tree, *inputs, **own.called, batch_size=size
    )
    check_prediction(ours, own.f(x))


@over()
def test_a_model(own):
    x = own.crossing.new_x
    ours = px.predict(own.crossing.model, own.draws, x, params=own.params)
    f = own.f(x)
    assert {"f", "y"} <= set(ours)
    check_prediction(ours["f"], f)
    np.testing.assert_allclose(ours["y"].mean, f.mean(0), atol=0.05)
    assert not np.allclose(ours["y"].mean, ours["f"].mean, atol=1e-5)


@over(
    often=("plate-hierarchical", "gru-normal", "learned-hierarchical"),
    where=lambda crossing: crossing.kind.log_prior is None,
)
def test_a_model_of_more_data_than_it_is_given(own):
    """The plate has the size of all data, and the inputs are a few, or more."""
    for x in (own.crossing.new_x[:1], own.crossing.x):
        size = len(own.crossing.new_x)
        ours = px.predict(
            own.crossing.model, own.draws, x, size=size, params=own.params
        )
        check_prediction(ours["f"], own.f(x))
        assert ours["y"].mean.shape == own.crossing.y_at(x).shape
    tree = own.tree_of(own.crossing.new_x[:2], size=100)
    hands = own.hands(own.crossing.new_x[:2])
    expected = np.stack([hand.log_likelihood for hand in hands])
    densities = tree["log_likelihood"]["y"].values.reshape(expected.shape)
    np.testing.assert_allclose(densities, expected, **CLOSE)


@over(often=("state-normal", "learned-normal"))
def test_a_model_of_the_tree_of_a_fit(own):
    x = own.crossing.new_x
    draws = {
        name: variable.values[0] for name, variable in own.fitted.posterior.items()
    }
    hands = own.hands(x, draws, params=own.fit.params, state=state_of(own.fit))
    f = np.stack([hand.f for hand in hands])
    ours = px.predict(own.crossing.model, own.fitted, x)["f"]
    check_prediction(ours, f)


@over(often=SOME)
def test_all_modules(own):
    hands = own.hands(own.crossing.x)
    theta = {p: np.stack([h.theta[p] for h in hands]) for p in hands[0].theta}
    modules = px.modules_from_draws(own.crossing.kind.module, own.tree, name="net")
    check_leaves(own, modules, theta)
    if not called_alone(own.crossing):
        return
    x = own.crossing.new_x
    inputs = own.crossing.kind.inputs(x, own.state)
    batched = own.crossing.kind.learned  # a module of the package takes all rows

    def evaluate(net):
        if own.crossing.kind.called is not None:
            return own.crossing.kind.called(net, *inputs)
        one = lambda row: net(row, *inputs[1:])  # noqa: E731 - one of two
        return net(*inputs) if batched else jax.vmap(one)(inputs[0])

    np.testing.assert_allclose(eqx.filter_vmap(evaluate)(modules), own.f(x), **CLOSE)


@over(often=SOME)
def test_a_module_of_one_draw(own):
    theta = own.hands(own.crossing.x)[11].theta
    module = own.crossing.kind.module
    for draws, i in ((own.tree, 11), (own.tree, (1, 3))):
        assert (CHAINS * DRAWS - 5, divmod(11, DRAWS)) == (11, (1, 3))
        check_leaves(own, px.module_from_draw(module, draws, i, name="net"), theta)
    given = {name: draws[:12] for name, draws in own.draws.items()}
    if not own.crossing.kind.learned:
        check_leaves(own, px.module_from_draw(module, given, -1, name="net"), theta)


@over(often=SOME)
def test_the_mean_module(own):
    hands = own.hands(own.crossing.x)
    theta = {p: np.mean([h.theta[p] for h in hands], 0) for p in hands[0].theta}
    module = own.crossing.kind.module
    check_leaves(own, px.module_from_mean(module, own.tree, name="net"), theta)


@over(
    often=(
        *("plate-hierarchical", "ties-hierarchical", "learned-hierarchical"),
        *("batchnorm-normal", "gru-normal", "walk-normal", "convolution-normal"),
    )
)
def test_compiled_predictive(own):
    x = own.crossing.new_x
    latent = {name: own.draws[name] for name in own.crossing.latent()}
    compiled = CompiledPredictive(own.crossing.model, latent, params=own.params)
    ours = compiled(KEY, x)
    np.testing.assert_allclose(ours["f"], own.f(x), **CLOSE)
    check_noise(ours["y"], own.f(x))
    plain = Predictive(own.crossing.model, latent, params=own.params)(KEY, x)
    np.testing.assert_allclose(ours["y"], plain["y"], rtol=1e-4, atol=1e-4)
    compiled.posterior_samples = {n: v[::-1] for n, v in latent.items()}
    np.testing.assert_allclose(compiled(KEY, x)["f"], own.f(x)[::-1], **CLOSE)
    assert len(ours["f"]) == NUMBER
