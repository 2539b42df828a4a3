"""draws_from_modules: an ensemble that was trained elsewhere comes in."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import pyrox_ppl as px

pytestmark = pytest.mark.rank_promotion
X = jnp.linspace(-1.0, 1.0, 6)[:, None]
Y = X[:, 0] ** 2
KEYS = jax.random.split(jax.random.key(1), 4)


def make(key):
    return eqx.nn.MLP(1, 1, 3, 1, jnp.tanh, key=key)


NET = make(jax.random.key(0))
NETS = [make(key) for key in KEYS]
STACKED = eqx.filter_vmap(make)(KEYS)
MEANS = np.stack([jax.vmap(net)(X)[:, 0] for net in NETS])


def model(x, y=None):
    with px.bayesianize():
        net = px.bind(NET, "net")
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.1), obs=y)


def learned_and_non_centred(x, y=None):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    prior = px.priors.NonCentered(dist.Normal(0.5, scale))
    with (
        px.bayesianize(where="*layers.1*", prior=lambda parameter: prior),
        px.learn(where="*layers.0*"),
    ):
        net = px.bind(NET, "net")
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.1), obs=y)


def likelihood(means):
    return stats.norm.logpdf(np.asarray(Y), means, 0.1)


@pytest.mark.parametrize("modules", [NETS, STACKED], ids=["list", "stacked"])
def test_every_module_is_a_member_whose_tree_is_computed(modules):
    draws = px.draws_from_modules(modules, X, y=Y, model=model, name="net")
    tree = px.to_datatree(draws, X, y=Y, model=model)
    assert tree.attrs["inference"] == "ensemble"
    assert tree.attrs["members"] == 4
    found = tree.log_likelihood["y"].values[:, 0]
    np.testing.assert_allclose(found, likelihood(MEANS), rtol=1e-4, atol=1e-4)
    out = px.modules_from_draws(NET, tree, name="net")
    np.testing.assert_array_equal(out.layers[1].weight, STACKED.layers[1].weight)
    fit = px.predict(NET, draws, X, name="net", progress_bar=False)
    np.testing.assert_allclose(fit.mean[:, 0], MEANS.mean(0), atol=1e-5)
    diagnosis = px.diagnose(tree, NET, X, name="net")
    assert [check.name for check in diagnosis.checks] == ["members"]
    apart = MEANS[:, None] - MEANS[None]
    expected = np.sqrt((apart**2).mean(-1))
    np.testing.assert_allclose(diagnosis.distances, expected, atol=1e-5)


def test_learned_and_non_centred_parameters_and_a_site_of_no_module():
    scales = jnp.array([0.5, 1.0, 2.0, 0.1])
    values = {"scale": scales}
    draws = px.draws_from_modules(
        NETS, X, y=Y, model=learned_and_non_centred, name="net", values=values
    )
    noise = draws.posterior["net.layers.1.weight_decentered"].values[:, 0]
    weights = np.asarray(STACKED.layers[1].weight)
    expected = (weights - 0.5) / np.asarray(scales)[:, None, None]
    np.testing.assert_allclose(noise, expected, rtol=1e-5)
    backbone = draws.params["net.layers.0.weight"].values
    np.testing.assert_array_equal(backbone, STACKED.layers[0].weight)
    tree = px.to_datatree(draws, X, y=Y, model=learned_and_non_centred)
    found = tree.log_likelihood["y"].values[:, 0]
    np.testing.assert_allclose(found, likelihood(MEANS), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"also samples \['scale'\]"):
        px.draws_from_modules(NETS, X, Y, model=learned_and_non_centred, name="net")


def test_a_plate_ties_and_two_roots():
    def tie(net):
        same = lambda n: n.layers[1].weight  # noqa: E731
        return eqx.tree_at(same, net, net.layers[0].weight)

    def wide(key):
        return tie(eqx.nn.MLP(2, 2, 2, 1, key=key))

    tied = wide(jax.random.key(0))

    def model(x):
        with px.bayesianize(), numpyro.plate("group", 3):
            px.bind(tied, "tied", plate="group")
        with px.bayesianize():
            px.bind(NET, "net")

    nets = [wide(key) for key in KEYS]
    shared = px.draws_from_modules({"tied": nets, "net": NETS}, X, model=model)
    found = shared.posterior["tied.layers.0.weight"].values
    assert "tied.layers.1.weight" not in shared.posterior
    assert found.shape == (4, 1, 3, 2, 2)
    np.testing.assert_array_equal(found[:, 0, 2], [n.layers[0].weight for n in nets])

    def grouped(key):
        each = eqx.filter_vmap(lambda k: eqx.nn.MLP(2, 2, 2, 1, key=k))
        return tie(each(jax.random.split(key, 3)))

    nets = [grouped(key) for key in KEYS]
    draws = px.draws_from_modules({"tied": nets, "net": NETS}, X, model=model)
    found = draws.posterior["tied.layers.0.weight"].values[:, 0]
    np.testing.assert_array_equal(found, [n.layers[0].weight for n in nets])

    broken = [eqx.tree_at(lambda n: n.layers[1].weight, nets[0], jnp.ones((3, 2, 2)))]
    with pytest.raises(ValueError, match="one tied array in the model"):
        px.draws_from_modules({"tied": broken, "net": NETS[:1]}, X, model=model)


def constant(x, y):
    with px.bayesianize(where="*layers.1*"):
        px.bind(NET, "net")


@pytest.mark.parametrize(
    ("modules", "kwargs", "message"),
    [
        (NETS, {}, r"none named \['mlp'\]"),
        ([eqx.nn.MLP(1, 1, 5, 1, key=KEYS[0])], {"name": "net"}, r"has shape \(5, 1\)"),
        ([NET.layers[0]], {"name": "net"}, "with the parameters"),
        ([eqx.nn.MLP(1, 1, 3, 2, key=KEYS[0])], {"name": "net"}, "they differ in"),
        ([], {"name": "net"}, "one at least"),
        (NET, {"name": "net"}, "leading axis of members"),
        (NETS, {"name": "net", "model": constant}, "is a constant in the model"),
        (NETS, {"name": "net", "values": {"a": jnp.ones(4)}}, r"sites \['a'\]"),
        (NETS, {"name": "net", "values": {"a": jnp.ones(3)}}, "of the 4 members"),
    ],
)
def test_modules_that_are_not_the_models_are_refused(modules, kwargs, message):
    with pytest.raises(ValueError, match=message):
        px.draws_from_modules(modules, X, Y, **({"model": model} | kwargs))
