"""The trained modules of an ensemble's members: all of them, one, and their mean."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import pyrox_ppl as px
from pyrox_ppl.infer import run_ensemble

pytestmark = pytest.mark.rank_promotion
KEY, MEMBERS, DRAWS = jax.random.key(0), 3, 2
X = np.linspace(-1, 1, 4, dtype=np.float32)[:, None]


def make(key):
    return eqx.nn.MLP(1, "scalar", 2, 1, activation=jnp.tanh, key=key)


NET = make(KEY)
PARTS = {
    "net.layers.0.weight": lambda net: net.layers[0].weight,
    "net.layers.0.bias": lambda net: net.layers[0].bias,
    "net.layers.1.weight": lambda net: net.layers[1].weight,
    "net.layers.1.bias": lambda net: net.layers[1].bias,
}


def learned(x, y=None):
    with px.learn():
        net = px.bind(NET, "net")
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x), 0.1), obs=y)


def half_learned(x, y=None):
    with px.bayesianize(where="*layers.1*"), px.learn(where="*layers.0*"):
        net = px.bind(NET, "net")
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x), 0.1), obs=y)


def nothing(x, y=None):
    """A guide without sites."""


@pytest.fixture(
    scope="module",
    params=["learned", pytest.param("half learned", marks=pytest.mark.slow)],
)
def trained(request):
    """An ensemble's fit and tree, and every draw of the parameters by hand."""
    model = learned if request.param == "learned" else half_learned
    guide = nothing if model is learned else AutoNormal(model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    fit = run_ensemble(svi, KEY, MEMBERS, 2, X, X[:, 0], make=make, progress_bar=False)
    tree = px.to_datatree(
        fit, X, y=X[:, 0], guide=guide, model=model, num_samples=DRAWS
    )
    number = 1 if model is learned else DRAWS
    values = {}
    for name in PARTS:
        if name in fit.params:
            values[name] = np.repeat(np.asarray(fit.params[name])[:, None], number, 1)
        else:
            values[name] = tree.posterior[name].values
    return fit, tree, values


def check(net, expected):
    for name, part in PARTS.items():
        np.testing.assert_allclose(part(net), expected[name], rtol=1e-6)


def test_a_tree_has_the_module_of_each_member(trained):
    _, tree, values = trained
    number = values["net.layers.0.bias"].shape[1]
    flat = {n: v.reshape(-1, *v.shape[2:]) for n, v in values.items()}
    check(px.modules_from_draws(NET, tree, name="net"), flat)
    for chain in range(MEMBERS):
        for i in range(number):
            expected = {name: value[chain, i] for name, value in values.items()}
            at = chain * number + i
            for index in ((chain, i), at, at - MEMBERS * number):
                check(px.module_from_draw(NET, tree, index, name="net"), expected)
    mean = {name: value.mean((0, 1)) for name, value in values.items()}
    check(px.module_from_mean(NET, tree, name="net"), mean)


def test_selected_members_have_their_own_values(trained):
    _, tree, values = trained
    part = tree.isel(chain=[2, 0])
    expected = {name: value[2, -1] for name, value in values.items()}
    number = values["net.layers.0.bias"].shape[1]
    found = px.module_from_draw(NET, part, (0, number - 1), name="net")
    check(found, expected)
    mean = {name: value[[2, 0]].mean((0, 1)) for name, value in values.items()}
    check(px.module_from_mean(NET, part, name="net"), mean)


def test_parameters_that_are_all_learned_are_draws_of_members(trained):
    fit, _, values = trained
    if set(fit.params) != set(PARTS):
        with pytest.raises(ValueError, match=r"not its parameters|not parameters"):
            px.modules_from_draws(NET, fit.params, name="net")
        return
    nets = px.modules_from_draws(NET, fit.params, name="net")
    check(nets, {name: value[:, 0] for name, value in values.items()})
    one = px.module_from_draw(NET, fit.params, 1, name="net")
    check(one, {name: value[1, 0] for name, value in values.items()})
    alone = px.predict(NET, fit.params, X, name="net")
    by_hand = eqx.filter_vmap(lambda net: jax.vmap(net)(X))(nets)
    np.testing.assert_allclose(alone.mean, by_hand.mean(0), rtol=1e-5, atol=1e-6)


def test_a_fit_is_not_draws(trained):
    fit, _, _ = trained
    with pytest.raises(TypeError, match=r"got EnsembleResult.*to_datatree\(fit"):
        px.modules_from_draws(NET, fit, name="net")
