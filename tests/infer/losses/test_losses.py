"""The losses in SVI: their value, their guides, their runs, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

import pyrox_ppl as px
from pyrox_ppl.infer import (
    AutoFlatNormal,
    CompiledSVI,
    Flipout_ELBO,
    LocalReparam_ELBO,
    init_to_stored,
)

KEY = jr.key(0)
LOSSES = [LocalReparam_ELBO, Flipout_ELBO]
NET = eqx.nn.MLP(2, 1, 4, 1, key=KEY)
X = jr.normal(jr.key(1), (24, 2))
Y = jnp.sin(X[:, 0])


def model(x, y=None, prior=None, size=None):
    with px.bayesianize(prior=prior or dist.Normal(0.0, 1.0)):
        net = px.bind(NET, "net")
    shift = numpyro.sample("shift", dist.LogNormal(-1.0, 0.3))
    subsample = None if size is None or size == len(x) else len(x)
    with numpyro.plate("row", size or len(x), subsample_size=subsample):
        mean = jax.vmap(net)(x)[:, 0] + shift
        numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def hand_written(x, y=None, **_):
    def normal(name, shape):
        loc = numpyro.param(f"{name}.loc", jnp.full(shape, 0.1))
        law = dist.Normal(loc, 0.4)
        numpyro.sample(name, law.to_event(len(shape)))

    for i, width in enumerate((2, 4)):
        out = (4, 1)[i]
        normal(f"net.layers.{i}.weight", (out, width))
        normal(f"net.layers.{i}.bias", (out,))
    numpyro.sample("shift", dist.LogNormal(-1.0, 0.2))


def make_guide(kind):
    if kind is hand_written:
        return kind
    return kind(model, init_loc_fn=init_to_stored, init_scale=0.4)


def gradients(loss, guide, params, draws):
    def one(key):
        def value(params):
            return loss.loss(key, params, model, guide, X, y=Y)

        return jax.value_and_grad(value)(params)

    return jax.jit(jax.vmap(one))(jr.split(jr.key(5), draws))


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (LocalReparam_ELBO, AutoNormal),
        pytest.param(LocalReparam_ELBO, AutoFlatNormal, marks=pytest.mark.slow),
        pytest.param(Flipout_ELBO, AutoDiagonalNormal, marks=pytest.mark.slow),
        (Flipout_ELBO, hand_written),
    ],
)
def test_value_and_gradient_are_those_of_numpyro_on_average(loss, kind):
    guide = make_guide(kind)
    svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    params = svi.get_params(svi.init(KEY, X, y=Y))
    truth = gradients(Trace_ELBO(), guide, params, 2000)
    ours = gradients(loss(), guide, params, 2000)
    for a, b in zip(jax.tree.leaves(truth), jax.tree.leaves(ours), strict=True):
        error = jnp.sqrt((a.var(0) + b.var(0)) / len(a) + 1e-9)
        assert jnp.abs((a.mean(0) - b.mean(0)) / error).max() < 5.0
    spread = [sum(g.var(0).sum() for g in jax.tree.leaves(t[1])) for t in (truth, ours)]
    assert spread[1] < 0.6 * spread[0]


def test_the_divergences_of_a_flat_guide_are_in_closed_form():
    # A likelihood that counts for nothing: the divergences are all that is left.
    def prior_only(x):
        with px.bayesianize():
            net = px.bind(NET, "net")
        with numpyro.plate("row", len(x)), numpyro.handlers.scale(scale=1e-12):
            numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 1.0), obs=Y)

    values = {}
    for kind in (AutoNormal, AutoFlatNormal):
        guide = kind(prior_only, init_loc_fn=init_to_stored, init_scale=0.4)
        svi = CompiledSVI(
            prior_only, guide, numpyro.optim.Adam(0.01), LocalReparam_ELBO()
        )
        state = svi.init(KEY, X)
        states = [state._replace(rng_key=jr.key(i)) for i in range(3)]
        evaluate = jax.jit(svi.evaluate)
        values[kind] = jnp.stack([evaluate(state, X) for state in states])
        assert jnp.ptp(values[kind]) < 1e-4
    assert jnp.allclose(values[AutoNormal], values[AutoFlatNormal], rtol=1e-5)


@pytest.mark.parametrize(
    "vectorize", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_particles_are_averaged(vectorize):
    guide = make_guide(AutoNormal)
    one, many = (
        LocalReparam_ELBO(),
        LocalReparam_ELBO(num_particles=8, vectorize_particles=vectorize),
    )
    svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.01), one)
    params = svi.get_params(svi.init(KEY, X, y=Y))
    few = gradients(one, guide, params, 200)[0]
    more = gradients(many, guide, params, 200)[0]
    assert abs(few.mean() - more.mean()) < 5 * few.std() / jnp.sqrt(200)
    assert more.std() < 0.6 * few.std()


@pytest.mark.parametrize("loss", LOSSES)
def test_linear_layer_has_the_moments_of_the_closed_form(loss):
    """As TyXe's and bayesian-torch's: one datum, its output's mean and variance."""
    linear = eqx.nn.Linear(3, 2, key=KEY)
    x = jnp.array([[1.0, -2.0, 0.5], [0.3, 0.1, 2.0]])
    seen = []

    def watched(x):
        with px.bayesianize():
            net = px.bind(linear, "net")
        f = jax.vmap(net)(x)
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", Watch(f).to_event(1), obs=jnp.zeros(f.shape))

    class Watch(dist.Normal):
        """A density that is one prediction, so that the loss returns it."""

        def log_prob(self, value, intermediates=None):
            return self.loc * jnp.zeros((2, 2)).at[place].set(1.0)

    guide = AutoNormal(watched, init_loc_fn=init_to_stored, init_scale=0.3)
    svi = CompiledSVI(watched, guide, numpyro.optim.Adam(0.01), loss())
    place = (0, 0)
    params = svi.get_params(svi.init(KEY, x))
    divergence = None
    for place in [(0, 0), (1, 1)]:
        keys = jr.split(jr.key(2), 20_000)

        def value(key, place=place):
            return -loss().loss(key, params, watched, guide, x)

        values = jax.jit(jax.vmap(value))(keys)
        mean = linear(x[place[0]])[place[1]]
        variance = 0.09 * (jnp.sum(x[place[0]] ** 2) + 1.0)
        assert abs(values.var() / variance - 1.0) < 0.05
        offset = values.mean() - mean
        divergence = offset if divergence is None else divergence
        assert abs(offset - divergence) < 6 * jnp.sqrt(2 * variance / len(keys))
        seen.append(values)
    kl = -dist.kl_divergence(dist.Normal(0.0, 0.3), dist.Normal(0.0, 1.0)) * 8
    weights = jnp.concatenate([linear.weight.ravel(), linear.bias])
    assert abs(divergence - (kl - 0.5 * jnp.sum(weights**2))) < 0.05


@pytest.mark.parametrize(
    "loss",
    [LocalReparam_ELBO, pytest.param(Flipout_ELBO, marks=pytest.mark.slow)],
)
def test_runs_of_every_kind_train(loss):
    optim = numpyro.optim.Adam(0.02)
    for kind, cls in [(AutoNormal, SVI), (AutoFlatNormal, CompiledSVI)]:
        svi = cls(model, make_guide(kind), optim, loss())
        fit = svi.run(KEY, 60, X, y=Y, progress_bar=False)
        assert fit.losses[-5:].mean() < fit.losses[:5].mean()


def test_minibatches_have_the_loss_of_all_data_on_average():
    guide = make_guide(AutoNormal)
    svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.01), LocalReparam_ELBO())
    params = svi.get_params(svi.init(KEY, X, y=Y))

    def value(key, x, y):
        return LocalReparam_ELBO().loss(key, params, model, guide, x, y=y, size=24)

    keys = jr.split(jr.key(2), 2000)
    whole = jax.jit(jax.vmap(lambda key: value(key, X, Y)))(keys)
    order = jax.vmap(lambda k: jr.permutation(k, 24)[:6])(keys)
    parts = jax.jit(jax.vmap(lambda key, i: value(key, X[i], Y[i])))(keys, order)
    error = jnp.sqrt((whole.var() + parts.var()) / len(keys))
    assert abs(whole.mean() - parts.mean()) < 5 * error
