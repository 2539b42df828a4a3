"""What the losses refuse, and what `explain` says of each parameter's noise."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO

import pyrox_ppl as px
from pyrox_ppl.infer import Flipout_ELBO, LocalReparam_ELBO

KEY = jr.key(0)
LOSSES = [LocalReparam_ELBO, Flipout_ELBO]
X = jr.normal(KEY, (6, 2))
NET = eqx.nn.MLP(2, 1, 4, 1, key=KEY)


def model(x, y=None):
    with px.bayesianize():
        net = px.bind(NET, "net")
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 1.0), obs=y)


def coupled(x, y=None):
    with px.bayesianize():
        net = px.bind(NET, "net")
    mean = jax.vmap(net)(x)[:, 0]
    covariance = jnp.eye(len(x)) + 0.5
    numpyro.sample("y", dist.MultivariateNormal(mean, covariance), obs=y)


def several(x, y=None):
    """A convolution, a weight used twice, and one that is learned."""
    conv = eqx.nn.Conv1d(1, 2, 1, key=KEY)
    twice, out = eqx.nn.Linear(2, 2, key=KEY), eqx.nn.Linear(2, 1, key=KEY)
    with px.bayesianize():
        conv, twice = px.bind(conv, "conv"), px.bind(twice, "twice")
    with px.learn():
        out = px.bind(out, "out")

    def run(x):
        h = jnp.tanh(conv(x[None])).mean(1)
        return out(twice(jnp.tanh(twice(h))))

    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(jax.vmap(run)(x)[:, 0], 1.0), obs=y)


def guide_of(model, law=dist.Normal):
    """A guide with one normal site for each parameter, by hand."""
    shapes = {
        row.name: row.shape
        for row in px.explain(model, X).parameters
        if row.becomes == "sample"
    }

    def guide(x, y=None):
        for name, shape in shapes.items():
            numpyro.sample(name, law(jnp.zeros(shape), 0.1).to_event(len(shape)))

    return guide


def evaluate(model, guide, loss):
    """The shape of the loss, without a number."""
    y = jnp.zeros(len(X))
    return jax.eval_shape(lambda key: loss.loss(key, {}, model, guide, X, y=y), KEY)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_that_a_likelihood_couples_are_refused(loss):
    with pytest.raises(ValueError, match="use TraceMeanField_ELBO"):
        evaluate(coupled, guide_of(coupled), loss())


def test_a_guide_without_normals_is_refused():
    with pytest.raises(ValueError, match="AutoNormal or AutoFlatNormal"):
        evaluate(model, guide_of(model, dist.Cauchy), LocalReparam_ELBO())


def test_a_model_that_reads_nothing_is_refused():
    def plain(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    def plain_guide(x, y=None):
        numpyro.sample("w", dist.Normal(jnp.zeros(2), 0.1).to_event(1))

    with pytest.raises(ValueError, match="finds no weights"):
        evaluate(plain, plain_guide, LocalReparam_ELBO())


def noise(model, loss, y):
    explanation = px.explain(model, X, y=y, loss=loss)
    return {row.name: row.noise for row in explanation.parameters}, str(explanation)


@pytest.mark.parametrize("y", [None, jnp.zeros(len(X))])
def test_explain_says_how_each_parameter_is_drawn(y):
    found, text = noise(several, LocalReparam_ELBO(), y)
    assert found["conv.weight"].startswith("signs per row")
    assert found["twice.weight"].startswith("one draw: used more than once")
    assert found["out.weight"] is None
    assert "noise of the loss" in text
    found, _ = noise(model, LocalReparam_ELBO(), y)
    assert set(found.values()) == {"drawn per row"}
    found, _ = noise(model, Flipout_ELBO(), y)
    assert set(found.values()) == {"signs per row"}
    found, _ = noise(coupled, Flipout_ELBO(), y)
    assert all(words.startswith("one draw: `") for words in found.values())


def test_explain_without_a_loss_says_nothing_of_noise():
    explanation = px.explain(model, X)
    assert "noise" not in str(explanation)
    assert {row.noise for row in explanation.parameters} == {None}


def test_explain_refuses_a_loss_that_cannot_say():
    with pytest.raises(TypeError, match="LocalReparam_ELBO"):
        px.explain(model, X, loss=Trace_ELBO())


def test_a_network_called_on_one_row_is_told_of_vmap():
    def one_row(x, y=None):
        with px.bayesianize():
            net = px.bind(NET, "net")
        numpyro.sample("y", dist.Normal(net(x[0])[0], 1.0), obs=0.0)

    with pytest.raises(ValueError, match=r"jax\.vmap"):
        evaluate(one_row, guide_of(one_row), LocalReparam_ELBO())


def test_a_mutable_state_that_mixes_rows_needs_one_draw():
    def with_state(x, y=None):
        with px.bayesianize():
            net = px.bind(NET, "net")
        state = numpyro.primitives.mutable("state", {"mean": jnp.zeros(())})
        f = jax.vmap(net)(x)[:, 0]
        state["mean"] = jnp.tanh(f.mean())
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(f, 1.0), obs=y)

    found, _ = noise(with_state, LocalReparam_ELBO(), jnp.zeros(len(X)))
    assert all("combines the rows" in words for words in found.values())


def test_the_losses_need_no_other_package():
    code = (
        "import sys, pyrox_ppl.infer as infer\n"
        "infer.LocalReparam_ELBO(), infer.Flipout_ELBO()\n"
        "print('quax' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"
