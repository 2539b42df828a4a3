"""Trained values that MCMC held are in its tree; random ones are asked for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import substitute
from numpyro.infer import MCMC, NUTS

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC, FlatNUTS

KEY, X = jax.random.key(0), jnp.ones((6, 1))
LINE = eqx.nn.Linear(1, 1, key=KEY)
TRAINED = {"n.weight": jnp.full((1, 1), 5.0)}


def model(x, y=None):
    with px.learn(where="*.weight"), px.bayesianize(where="*.bias"):
        net = px.bind(LINE, "n")
    f = numpyro.deterministic("f", jax.vmap(net)(x)[:, 0])
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(f, 0.1), obs=y)


def run(cls, kernel):
    mcmc = cls(kernel, num_warmup=20, num_samples=10, progress_bar=False)
    mcmc.run(KEY, X, y=5.0 * X[:, 0])
    return mcmc


@pytest.mark.parametrize(("cls", "kernel"), [(MCMC, NUTS), (CompiledMCMC, FlatNUTS)])
def test_a_tree_has_the_values_that_were_substituted(cls, kernel, tmp_path):
    mcmc = run(cls, kernel(substitute(model, data=TRAINED)))
    tree = px.to_datatree(mcmc, X, y=5.0 * X[:, 0])
    np.testing.assert_array_equal(tree.params["n.weight"], TRAINED["n.weight"])
    expected = 5.0 + np.asarray(mcmc.get_samples()["n.bias"]).mean()
    px.save(tmp_path / "fit.nc", tree, LINE)
    saved = px.load(tmp_path / "fit.nc")
    for ours in (tree, saved.posterior):
        fit = px.predict(LINE, ours, X, name="n")
        np.testing.assert_allclose(fit.mean, np.full((6, 1), expected), rtol=1e-5)
        f = px.predict(model, ours, X)["f"]
        np.testing.assert_allclose(f.mean, np.full(6, expected), rtol=1e-5)
    elsewhere = px.to_datatree(tree, 2 * X, y=10.0 * X[:, 0], model=model)
    bias = mcmc.get_samples()["n.bias"]
    np.testing.assert_allclose(elsewhere.posterior["f"][0], 10.0 + bias.repeat(6, 1))


def test_what_was_never_trained_is_there_as_it_was_held():
    tree = px.to_datatree(run(CompiledMCMC, NUTS(model)), X, y=5.0 * X[:, 0])
    np.testing.assert_array_equal(tree.params["n.weight"], LINE.weight)


def test_a_random_param_is_asked_for_and_can_be_given():
    def random(y):
        c = numpyro.param("c", lambda key: 5 * jax.random.normal(key))
        mean = numpyro.deterministic("mean", numpyro.sample("a", dist.Normal()) + c)
        numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)

    mcmc = MCMC(NUTS(random), num_warmup=20, num_samples=10, progress_bar=False)
    mcmc.run(KEY, 1.0)
    with pytest.raises(ValueError, match=r"\['c'\] are random.*params="):
        px.to_datatree(mcmc, 1.0)
    draws = mcmc.get_samples()
    tree = px.to_datatree(mcmc, 1.0, params={"c": (draws["mean"] - draws["a"])[0]})
    np.testing.assert_allclose(tree.posterior["mean"][0], draws["mean"], rtol=1e-4)
