"""Modules from elsewhere come in only if the model computes their function."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from scipy import stats

import pyrox_ppl as px

X = jnp.linspace(-1.0, 1.0, 6)[:, None]
Y = X[:, 0] ** 2
KEYS = jax.random.split(jax.random.key(1), 3)


class Net(eqx.Module):
    """A network with something of each kind besides its parameters."""

    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    activation: Callable
    order: jax.Array
    key: jax.Array
    factor: float
    power: int = eqx.field(static=True)

    def __init__(self, key, activation=jnp.tanh, order=(0, 1), factor=2.0, power=1):
        self.linear = eqx.nn.Linear(1, 2, key=key)
        self.dropout = eqx.nn.Dropout(0.5)
        self.activation, self.factor, self.power = activation, factor, power
        self.order, self.key = jnp.array(order), jax.random.key(3)

    def __call__(self, x):
        hidden = self.activation(self.linear(x))[self.order] ** self.power
        return self.factor * hidden @ jnp.array([1.0, -2.0])


class Subclass(Net):
    """Another class with the same parameters."""


def model_of(net, prior=None):
    prior = dist.Normal(0.0, 1.0) if prior is None else prior

    def model(x, y=None):
        with px.bayesianize(prior=prior):
            bound = px.bind(net, "net")
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(jax.vmap(bound)(x), 0.1), obs=y)

    return model


def closing_over(slope):
    return lambda x: slope * x


def draws_of(modules, model, **kwargs):
    return px.draws_from_modules(modules, X, y=Y, model=model, name="net", **kwargs)


@pytest.mark.parametrize(
    ("other", "path"),
    [
        (lambda key: Net(key, jnp.sin), "net.activation"),
        (lambda key: Net(key, closing_over(2.0)), "net.activation"),
        (lambda key: Net(key, functools.partial(jnp.pad, 1)), "net.activation"),
        (lambda key: Net(key, order=(1, 0)), "net.order"),
        (lambda key: Net(key, factor=3.0), "net.factor"),
        (lambda key: Net(key, power=2), "net.power"),
        (Subclass, "net"),
        (
            lambda key: eqx.tree_at(lambda n: n.dropout.p, Net(key), 0.1),
            "net.dropout.p",
        ),
    ],
    ids=["activation", "lambda", "partial", "table", "number", "static", "class", "p"],
)
def test_a_module_of_another_function_is_refused(other, path):
    model = model_of(Net(jax.random.key(0)))
    modules = [Net(KEYS[0]), other(KEYS[1])]
    with pytest.raises(ValueError, match=f"module 1 differs .*'{path}', which is no"):
        draws_of(modules, model)


def test_make_of_another_function_is_refused():
    model = model_of(Net(jax.random.key(0)))
    svi = SVI(model, AutoDelta(model), numpyro.optim.Adam(0.1), Trace_ELBO())
    with pytest.raises(ValueError, match=r"make\(key\) returned differs .*activation'"):
        px.infer.run_ensemble(
            svi,
            KEYS[0],
            2,
            1,
            X,
            y=Y,
            make=lambda key: Net(key, jnp.sin),
            progress_bar=False,
        )


def test_modes_and_functions_of_the_same_code_are_no_difference():
    model = model_of(Net(jax.random.key(0), closing_over(2.0)))
    modules = [eqx.nn.inference_mode(Net(key, closing_over(2.0))) for key in KEYS]
    found = draws_of(modules, model).posterior["net.linear.weight"].values[:, 0]
    np.testing.assert_array_equal(found, [net.linear.weight for net in modules])
    hidden = [Net(KEYS[0], closing_over(jnp.full(2, slope))) for slope in (1.0, 2.0)]
    draws_of(hidden[:1], model_of(hidden[0]))
    with pytest.raises(ValueError, match=r"module 1 differs .*'net.activation'"):
        draws_of(hidden, model_of(hidden[0]))
    stacked = eqx.filter_vmap(Net)(KEYS)
    draws_of(stacked, model_of(Net(jax.random.key(0))))


def test_values_that_the_prior_excludes_are_refused():
    net = Net(jax.random.key(0))
    modules = [jax.tree.map(lambda v: abs(v) if v.ndim else v, net.linear)] * 2
    modules = [eqx.tree_at(lambda n: n.linear, net, linear) for linear in modules]
    modules[1] = eqx.tree_at(lambda n: n.linear.bias, modules[1], -jnp.ones(2))
    positive = model_of(net, dist.HalfNormal(1.0))
    draws_of(modules[:1], positive)
    with pytest.raises(ValueError, match=r"members \[1\] have values of 'net.linear.b"):
        draws_of(modules, positive)
    modules[1] = eqx.tree_at(lambda n: n.linear.bias, modules[1], jnp.ones(2) * jnp.nan)
    with pytest.raises(ValueError, match=r"members \[1\] have values .*not finite"):
        draws_of(modules, model_of(net))


def test_arrays_that_only_the_module_ties_come_in():
    def tie(net):
        return eqx.tree_at(lambda n: n.layers[1].weight, net, net.layers[0].weight)

    nets = [eqx.nn.MLP(2, 2, 2, 1, key=key) for key in KEYS]

    def model(x, y):
        with px.bayesianize():
            px.bind(nets[0], "net")

    draws = draws_of([tie(net) for net in nets], model)
    for layer in (0, 1):
        found = draws.posterior[f"net.layers.{layer}.weight"].values[:, 0]
        np.testing.assert_array_equal(found, [net.layers[0].weight for net in nets])


def test_every_member_has_the_state_of_its_own_layers():
    def make(key):
        norm = eqx.nn.BatchNorm(1, "rows", mode="batch")
        return eqx.nn.Sequential([norm, eqx.nn.Linear(1, "scalar", key=key)])

    pairs = [eqx.nn.make_with_state(make)(key) for key in KEYS]
    trained = [
        jax.vmap(net, (0, None), (0, None), axis_name="rows")(X + i, state)[1]
        for i, (net, state) in enumerate(pairs)
    ]
    own, start = pairs[0]

    def mean(net, state):
        net = eqx.nn.inference_mode(net)
        return jax.vmap(net, (0, None), (0, None), axis_name="rows")(X, state)[0]

    def model(x, y=None):
        with px.bayesianize():
            net = px.bind(own, "net")
        state = numpyro.primitives.mutable("state", {"now": start})["now"]
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(mean(net, state), 0.1), obs=y)

    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trained)
    nets = [net for net, _ in pairs]
    draws = draws_of(nets, model, values={"state": {"now": states}})
    tree = px.to_datatree(draws, X, y=Y, model=model)
    by_hand = np.stack([mean(net, s) for net, s in zip(nets, trained, strict=True)])
    found = tree.log_likelihood["y"].values[:, 0]
    expected = stats.norm.logpdf(np.asarray(Y), by_hand, 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(ValueError, match="needs a leading axis of the 3 members"):
        draws_of(nets, model, values={"state": {"now": start}})
