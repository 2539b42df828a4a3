"""predict: against the draws themselves, against NumPyro's Predictive."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import make_field, make_mlp
from numpyro.infer import Predictive

import pyrox_ppl as px
from pyrox_ppl._bind import AbstractModule
from pyrox_ppl._parameter import parameters_of
from pyrox_ppl.prediction import Prediction
from pyrox_ppl.prediction import _site_values as site_values

KEY = jax.random.key(0)
QUANTILES = (0.1, 0.5, 0.9)


def draws_of(module, name, number=23):
    """Normal draws of every parameter, small: a sine of many radians is inexact."""
    reads = parameters_of(module, name)
    keys = jax.random.split(KEY, len(reads))
    return {
        read.parameter.name: 0.2 * jax.random.normal(key, (number, *read.stored.shape))
        for key, read in zip(keys, reads, strict=True)
    }


def check(prediction, values):
    """A prediction against all of its draws, along the first axis."""
    values = np.asarray(values, np.float64)
    assert prediction.mean.shape == values.shape[1:]
    np.testing.assert_allclose(prediction.mean, values.mean(0), atol=1e-5)
    np.testing.assert_allclose(prediction.std, values.std(0), atol=1e-5)
    for q, quantile in prediction.quantiles.items():
        np.testing.assert_allclose(quantile, np.quantile(values, q, axis=0), atol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 1, 4, 10, 99])
def test_a_plain_module_is_mapped_over_its_points(batch_size):
    mlp, x = make_mlp(), jax.random.normal(KEY, (10, 2))
    draws = draws_of(mlp, "net")
    ours = px.predict(
        mlp, draws, x, name="net", quantiles=QUANTILES, batch_size=batch_size
    )
    modules = px.modules_from_draws(mlp, draws, name="net")
    check(ours, eqx.filter_vmap(lambda net: jax.vmap(net)(x))(modules))


@pytest.mark.parametrize("batch_size", [None, 2, 3])
def test_a_module_of_this_package_takes_its_inputs_whole(batch_size):
    field = make_field(depth=2)
    draws = draws_of(field, "conditioned_inr")
    inputs = {
        "grouped": (jnp.ones((1, 7, 2)) * 0.1, jax.random.normal(KEY, (5, 1, 2))),
        "one context": (jax.random.normal(KEY, (5, 2)), jnp.array([0.5, 1.0])),
        "one point": (jnp.array([0.1, 0.2]), jnp.array([0.5, 1.0])),
    }
    for x, z in inputs.values():
        ours = px.predict(
            field, draws, x, z, quantiles=QUANTILES, batch_size=batch_size
        )
        each = [px.module_from_draw(field, draws, i)(x, z) for i in range(23)]
        check(ours, np.stack(each))


def test_draws_may_be_a_tree_by_chain():
    mlp, x = make_mlp(), jax.random.normal(KEY, (10, 2))
    draws = draws_of(mlp, "mlp", 24)
    tree = px.to_datatree(
        {n: v.reshape(4, 6, *v.shape[1:]) for n, v in draws.items()}, batch_ndims=2
    )
    for ours, theirs in zip(
        jax.tree.leaves(px.predict(mlp, tree, x)),
        jax.tree.leaves(px.predict(mlp, draws, x)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def model(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    offset = numpyro.param("offset", jnp.array(0.0))
    numpyro.deterministic("f", slope * x + offset)
    numpyro.factor("nothing", 0.0 * slope)
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(slope * x + offset, 0.1), obs=y)
        numpyro.sample("k", dist.Bernoulli(0.3))


@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_models_sites_are_the_numbers_of_predictive(batch_size):
    x, slopes = jnp.linspace(0.0, 1.0, 8), jnp.linspace(-1.0, 1.0, 13)
    params = {"offset": jnp.array(2.0)}
    theirs = Predictive(model, {"slope": slopes}, params=params)(KEY, x)
    for y in (None, x):  # an observation is drawn anew
        ours = px.predict(
            model,
            {"slope": slopes, "f": jnp.zeros((13, 8))},  # a stale deterministic
            x,
            y=y,
            rng_key=KEY,
            params=params,
            quantiles=QUANTILES,
            batch_size=batch_size,
        )
        assert set(ours) == set(theirs) - {"nothing"} == {"f", "y", "k"}
        for site, prediction in ours.items():
            # A label is summarised by its probability, which no draw changes.
            label = np.full((13, 8), 0.3, np.float32)
            check(prediction, label if site == "k" else theirs[site])


def test_draws_times_points_are_not_held(monkeypatch):
    x = jnp.linspace(0.0, 1.0, 50)
    monkeypatch.setattr(site_values, "_BLOCK_BYTES", 4 * 13 * 5)  # five points
    seen = []
    fill = Prediction.fill
    monkeypatch.setattr(
        Prediction,
        "fill",
        lambda self, where, draws: seen.append(draws.shape) or fill(self, where, draws),
    )
    slopes = jnp.linspace(-1.0, 1.0, 13)
    ours = px.predict(model, {"slope": slopes}, x, sites=["f"])["f"]
    assert seen == [(13, 5)] * 10
    check(ours, slopes[:, None] * x[None])


class Counting(AbstractModule):
    """Counts how often Python runs it, which is once for each compilation."""

    weight: jax.Array
    counts: list = eqx.field(static=True)

    def forward(self, x):
        self.counts.append(x.shape)
        return x * self.weight[None]


def test_it_is_compiled_once_for_every_shape():
    class Counts(list):
        __hash__ = object.__hash__

    counts = Counts()
    module = Counting(jnp.ones(2), counts)
    draws = {"counting.weight": jnp.ones((5, 2))}
    for number in (10, 9, 8):
        px.predict(module, draws, jnp.ones((number, 2)), batch_size=4)
    compiled = len([shape for shape in counts if shape == (4, 2)])
    px.predict(module, draws, jnp.zeros((11, 2)), batch_size=4)  # blocks of four again
    assert len([shape for shape in counts if shape == (4, 2)]) == compiled


def test_a_new_module_of_the_same_shape_is_not_the_old_one():
    x, draws = jnp.ones((3, 2)), {"mlp.layers.0.weight": jnp.ones((5, 4, 2))}
    one, other = (px.predict(make_mlp(seed), draws, x).mean for seed in (0, 1))
    assert not np.allclose(one, other)


def test_bad_input_is_refused():
    mlp, x = make_mlp(), jnp.ones((3, 2))
    draws = draws_of(mlp, "mlp")
    with pytest.raises(ValueError, match="probabilities"):
        px.predict(mlp, draws, x, quantiles=(5.0,))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        px.predict(mlp, draws, x, batch_size=0)
    with pytest.raises(ValueError, match=r"different numbers of points"):
        px.predict(make_field(), draws_of(make_field(), "conditioned_inr"), x, x[:2])
    with pytest.raises(ValueError, match=r"no site \['g'\] to predict"):
        px.predict(model, {"slope": jnp.ones(3)}, x[:, 0], sites=["g"])
    with pytest.raises(ValueError, match="this is a model"):
        px.predict(model, {"slope": jnp.ones(3)}, x[:, 0], name="net")
    with pytest.raises(ValueError, match="same 1 leading sample axes"):
        px.predict(model, {"slope": jnp.ones(3), "b": jnp.ones(4)}, x[:, 0])
    with pytest.raises(TypeError, match=r"mcmc\.get_samples"):
        px.predict(model, [1.0], x[:, 0])


def test_a_call_of_a_module_from_outside_is_refused():
    net = make_mlp()
    draws = draws_of(net, "net")
    x = jnp.ones((3, net.in_size))
    inputs = (net, draws, x)
    with pytest.raises(ValueError, match="none of the drawn parameters of MLP"):
        px.predict(*inputs, name="net", call=lambda _, x: jax.vmap(net)(x))
    scanned = px.predict(*inputs, name="net", call=lambda net, x: jax.lax.map(net, x))
    assert scanned.std.min() > 0.0
