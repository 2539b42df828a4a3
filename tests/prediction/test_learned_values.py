"""What was learned, tied or grouped never falls back to the stored value in silence."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from numpyro.optim import Adam
from numpyro.primitives import mutable

import pyrox_ppl as px

KEY = jax.random.key(0)
MLP = eqx.nn.MLP(2, 1, 4, 1, key=KEY)
X = jax.random.normal(KEY, (6, 2))
FIRST = {"net.layers.0.weight": jnp.ones((4, 2)), "net.layers.0.bias": jnp.ones(4)}
LAST = {
    "net.layers.1.weight": jax.random.normal(KEY, (7, 1, 4)),
    "net.layers.1.bias": jnp.ones((7, 1)),
}


def by_hand(x):
    """The network with the first layer learned, the last one drawn."""
    hidden = jax.nn.relu(x @ FIRST["net.layers.0.weight"].T + jnp.ones((1, 4)))
    return np.asarray(hidden @ LAST["net.layers.1.weight"][:, 0].T + 1.0).T[..., None]


def test_params_reach_every_way_out():
    f = by_hand(X)
    predicted = px.predict(MLP, LAST, X, name="net", params=FIRST)
    np.testing.assert_allclose(predicted.mean, f.mean(0), atol=1e-5)
    modules = px.modules_from_draws(MLP, LAST, name="net", params=FIRST)
    values = eqx.filter_vmap(lambda net: jax.vmap(net)(X))(modules)
    np.testing.assert_allclose(values, f, atol=1e-5)
    one = px.module_from_draw(MLP, LAST, 3, name="net", params=FIRST)
    np.testing.assert_allclose(jax.vmap(one)(X), f[3], atol=1e-5)
    mean = px.module_from_mean(MLP, LAST, name="net", params=FIRST)
    np.testing.assert_allclose(jax.vmap(mean)(X), f.mean(0), atol=1e-5)
    tree = px.to_datatree(LAST)
    diagnosis = px.diagnose(tree, MLP, X, name="net", params=FIRST)
    np.testing.assert_allclose(diagnosis.functions.std, f.std(0)[:, 0], atol=1e-5)


@pytest.mark.rank_promotion
def test_a_fit_predicts_with_its_params():
    def model(x, y=None):
        with px.bayesianize(where="*.1.*"), px.learn(where="*.0.*"):
            net = px.bind(MLP, "net")
        f = numpyro.deterministic("f", jax.vmap(net)(x)[:, 0])
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Normal(f, 0.3), obs=y)

    for kind in (AutoNormal, AutoMultivariateNormal):
        guide = kind(model)
        svi = px.infer.CompiledSVI(model, guide, Adam(0.1), Trace_ELBO())
        fit = svi.run(KEY, 20, X, X[:, 0], progress_bar=False)
        draws = guide.sample_posterior(KEY, fit.params, sample_shape=(5,))
        f = Predictive(model, draws, params=fit.params)(KEY, X)["f"]
        ours = px.predict(MLP, draws, X, name="net", params=fit.params).mean
        np.testing.assert_allclose(ours[:, 0], f.mean(0), atol=1e-5)
        assert not np.allclose(px.predict(MLP, draws, X, name="net").mean, ours)
        last = {n: v for n, v in fit.params.items() if ".0." not in n}
        px.predict(MLP, draws, X, name="net", params=last)  # a guide's: no typo


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"net.layers.0.wieght": jnp.ones((4, 2))},
            r"wieght'\] are not its parameters",
        ),
        (
            {"other.layers.0.weight": jnp.ones((4, 2))},
            r"not its parameters.*name='other'",
        ),
        ({"nonsense": jnp.ones(3)}, "leave `params` out"),
        (FIRST | {"net.layers.7.bias": jnp.ones(4)}, r"layers\.7.*not its parameters"),
        ({"net.layers.0.bias": jnp.ones(5)}, r"\(5,\).*\(4,\)"),
        ({"net.layers.1.bias": jnp.ones(1)}, "inferred or learned"),
        ({"net": {"layers": jnp.ones(3)}}, "trees of arrays"),
    ],
)
def test_params_that_do_not_fit_raise(params, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        px.predict(MLP, LAST, X, name="net", params=params)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        px.modules_from_draws(MLP, LAST, name="net", params=params)


def test_learned_members_of_a_plate_are_members():
    learned = {"net.layers.0.bias": jnp.arange(8.0).reshape(2, 4)}
    drawn = {"net.layers.1.bias": jnp.ones((7, 2, 1)), "noise": jnp.ones(7)}
    modules = px.modules_from_draws(MLP, drawn, name="net", params=learned)
    np.testing.assert_array_equal(
        modules.layers[0].bias, np.broadcast_to(np.arange(8.0).reshape(2, 4), (7, 2, 4))
    )
    assert modules.layers[0].weight.shape == (7, 2, 4, 2)


def test_draws_by_chain_are_not_members_of_a_plate():
    by_chain = {name: jnp.stack([v, v + 1.0]) for name, v in LAST.items()}
    for out in (px.module_from_mean, px.modules_from_draws):
        with pytest.raises(ValueError, match=r"batch_ndims=2.*batch_ndims=1.*which"):
            out(MLP, by_chain, name="net")
    with pytest.raises(ValueError, match="batch_ndims=2"):
        px.predict(MLP, by_chain, X, name="net")
    mean = px.module_from_mean(MLP, by_chain, name="net", batch_ndims=2)
    np.testing.assert_allclose(mean.layers[1].bias, 1.5)
    members = px.module_from_mean(MLP, by_chain, name="net", batch_ndims=1)
    assert members.layers[1].bias.shape == (7, 1)


class Tied(eqx.Module):
    decoder: jax.Array
    encoder: jax.Array

    def __call__(self, x):
        return self.decoder @ self.encoder @ x


SHARED = jnp.eye(2)
TIED = Tied(SHARED, SHARED)


def of_tied(x):
    with px.bayesianize():
        net = px.bind(TIED, "net")
    numpyro.deterministic("f", jax.vmap(net)(x))


def test_a_tie_that_a_tree_knows_of_outlives_a_copy():
    drawn = Predictive(of_tied, num_samples=5)(KEY, X)
    assert set(drawn) == {"net.decoder", "f"}
    tree = px.to_datatree(drawn, X, model=of_tied)
    copied = Tied(jnp.array(np.eye(2)), jnp.array(np.eye(2)))
    for module, draws in ((TIED, drawn), (TIED, tree), (copied, tree)):
        predicted = px.predict(module, draws, X, name="net")
        np.testing.assert_allclose(predicted.mean, drawn["f"].mean(0), atol=1e-5)
    compiled = eqx.filter_jit(lambda net: px.modules_from_draws(net, tree, name="net"))
    np.testing.assert_array_equal(compiled(TIED).encoder, drawn["net.decoder"])


def test_a_tie_that_nobody_can_see_is_refused():
    drawn = {"net.decoder": jnp.ones((3, 2, 2))}
    with pytest.raises(ValueError, match="one tied array"):
        eqx.filter_jit(lambda net: px.modules_from_draws(net, drawn, name="net"))(TIED)
    inside = jax.jit(lambda d: px.modules_from_draws(TIED, d, name="net").encoder)
    np.testing.assert_array_equal(inside(drawn), drawn["net.decoder"])


def test_the_name_under_which_trained_values_match_is_said():
    linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    params = {"net.weight": jnp.ones((1, 1)), "net.bias": jnp.ones(1)}

    def model(x, y=None):
        with px.learn():
            f = px.bind(linear, "net")(x)
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(f, noise).to_event(1), obs=y)

    draws = {"noise": jnp.ones(3)}
    tree = px.to_datatree(draws, jnp.ones(1), y=jnp.ones(1), model=model, params=params)
    with pytest.raises(ValueError, match="Did you mean name='net'"):
        px.predict(linear, tree, jnp.ones((2, 1)))


def test_draws_may_be_lists():
    def model():
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.deterministic("f", 2.0 * a)

    assert px.predict(model, {"a": [1.0, 2.0, 3.0]})["f"].mean == pytest.approx(4.0)


def test_a_prediction_leaves_the_state_of_a_fit_usable():
    """A layer that is called without vmap makes the state that it gets unusable."""
    layer = eqx.nn.SpectralNorm(eqx.nn.Linear(2, 1, key=KEY), "weight", key=KEY)

    def model(x):
        with px.bayesianize(where="*.bias"):
            net = px.bind(layer, "net")
        held = mutable("state", {"now": eqx.nn.State(layer)})
        out, held["now"] = net(x, held["now"])
        numpyro.deterministic("f", out)

    trained = {"state": {"now": eqx.nn.State(layer)}}
    draws = {"net.layer.bias": jnp.arange(5.0)[:, None]}
    first, again = (px.predict(model, draws, X[0], params=trained) for _ in range(2))
    np.testing.assert_array_equal(first["f"].mean, again["f"].mean)
    assert jax.tree.leaves(trained)
