"""diagnose knows what draws are: chains, a guide's, an ensemble's, or who knows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC, CompiledSVI

KEY = jax.random.key(0)
LINEAR = eqx.nn.Linear(1, 1, use_bias=False, key=KEY)
X = jnp.ones((3, 1))
RNG = np.random.default_rng(0)
# Eight members that found eight functions, 50 draws of each.
MEMBERS = (RNG.normal(size=(8, 50)) + 10.0 * np.arange(8)[:, None])[..., None, None]


def rhat(tree):
    found = [c for c in px.diagnose(tree, LINEAR, X).checks if c.name == "R-hat"]
    return found[0] if found else None


def test_a_row_of_draws_is_not_condemned_as_a_chain():
    row = px.to_datatree({"linear.weight": MEMBERS.reshape(400, 1, 1)})
    check = rhat(row)
    assert check.passed is None
    assert "members of an ensemble, or draws of a guide" in check.finding
    assert "the chains disagree" not in str(px.diagnose(row, LINEAR, X))
    assert px.diagnose(row, LINEAR, X).functions.rhat.max() > 2.5
    mixed = RNG.permutation(MEMBERS.reshape(400, 1, 1))
    assert px.diagnose(px.to_datatree({"linear.weight": mixed}), LINEAR, X).ok


def test_draws_by_chain_are_taken_at_their_word():
    tree = px.to_datatree({"linear.weight": MEMBERS}, batch_ndims=2)
    assert rhat(tree).passed is False
    assert "if these are Markov chains" in rhat(tree).advice
    row = px.to_datatree({"linear.weight": MEMBERS.reshape(400, 1, 1)})
    row.attrs["inference"] = "MCMC"
    assert rhat(row).passed is False
    assert "if these are Markov chains" not in rhat(row).advice


def test_members_of_an_ensemble_may_differ():
    tree = px.to_datatree({"linear.weight": MEMBERS}, batch_ndims=2)
    tree.attrs["inference"] = "ensemble"
    assert rhat(tree) is None
    assert px.diagnose(tree, LINEAR, X).ok


def model(x, y=None):
    with px.bayesianize():
        net = px.bind(LINEAR, "linear")
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 1.0), obs=y)


def test_held_out_data_do_not_change_what_the_draws_are():
    guide = AutoNormal(model)
    svi = CompiledSVI(model, guide, Adam(0.1), Trace_ELBO())
    fit = svi.run(KEY, 30, X, X[:, 0], progress_bar=False)
    tree = px.to_datatree(fit, X, X[:, 0], guide=guide, num_samples=20)
    mcmc = CompiledMCMC(NUTS(model), num_warmup=5, num_samples=20, progress_bar=False)
    mcmc.run(KEY, X, X[:, 0])
    for source, inference in (
        (tree, "SVI"),
        (px.to_datatree(mcmc, X, X[:, 0]), "MCMC"),
    ):
        scored = px.to_datatree(source, 2 * X, y=X[:, 0], model=model)
        assert scored.attrs["inference"] == inference
    names = {c.name: c.passed for c in px.diagnose(scored, LINEAR, X).checks}
    assert names["divergences"] is names["E-BFMI"] is None


@pytest.mark.wrong_types
def test_what_is_no_tree_is_named():
    mcmc = MCMC(NUTS(model), num_warmup=1, num_samples=1)
    tree = px.to_datatree({"linear.weight": MEMBERS}, batch_ndims=2)
    for function in (px.diagnose, px.calibration, px.summary):
        with pytest.raises(TypeError, match=r"got MCMC.*to_datatree\(mcmc"):
            function(mcmc)
        with pytest.raises(TypeError, match=r"got dict.*to_datatree\(draws"):
            function({"a": jnp.ones(3)})
        with pytest.raises(TypeError, match=r"got Dataset.*whole tree"):
            function(tree.posterior.to_dataset())
        with pytest.raises(ValueError, match="whole tree, not its group 'posterior'"):
            function(tree.posterior)
    with pytest.raises(TypeError, match=r"diagnose\(tree, module"):
        px.diagnose(tree, X)
    held_out = px.to_datatree(tree, X, y=X[:, 0], model=model)
    with pytest.raises(ValueError, match="levels are probabilities"):
        px.calibration(held_out, levels=(90,))
    for level in (0.9, "0.9"):
        with pytest.raises(ValueError, match="levels are several probabilities"):
            px.calibration(held_out, levels=level)


def test_small_numbers_are_not_rounded_away():
    values = 3e-4 + 1e-4 * RNG.normal(size=(2, 100))
    table = px.summary(px.to_datatree({"a": values, "b": 1e9 * values}, batch_ndims=2))
    for name, scale in (("a", 1.0), ("b", 1e9)):
        row = table.loc[name]
        assert row["mean"] == pytest.approx(scale * values.mean(), rel=5e-3)
        assert row["sd"] == pytest.approx(scale * values.std(), rel=5e-3)
