"""to_datatree where a model is more than a likelihood of its latents."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, Predictive, Trace_ELBO, autoguide
from numpyro.primitives import mutable
from scipy import stats
from scipy.special import logsumexp

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledMCMC, CompiledSVI
from pyrox_ppl.posterior._functions import function_statistics
from pyrox_ppl.prediction._model_call import ModelCall

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 5)


def test_every_prior_draw_has_a_random_number_of_its_own():
    def model(x, y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        keep = jax.random.bernoulli(numpyro.prng_key(), 0.5, x.shape)
        numpyro.sample("y", dist.Normal(keep * a, 0.1).to_event(1), obs=y)

    draws = {"a": jnp.ones(6)}
    tree = px.to_datatree(
        draws, X, y=X, model=model, num_prior_samples=6, predictions=(X,), rng_key=KEY
    )
    for group, key, given in (
        ("posterior_predictive", KEY, draws),
        ("predictions", jax.random.fold_in(KEY, 3), draws),
        ("prior_predictive", jax.random.fold_in(KEY, 2), None),
    ):
        theirs = Predictive(model, given, num_samples=6)(key, X)
        np.testing.assert_allclose(tree[group]["y"][0], theirs["y"], atol=1e-5)
    np.testing.assert_allclose(tree.prior["a"][0], theirs["a"], atol=1e-6)
    of_draws = tree.log_likelihood["y"].values[0]
    assert len(np.unique(of_draws)) > 1  # a mask of its own for every draw


MARK = {"enumerate": "parallel"}
Y = jnp.array([0.0, 10.0, 0.0])


def mixture(y=None, other=None):
    p = numpyro.sample("p", dist.Beta(5.0, 5.0))
    common = numpyro.sample("common", dist.Bernoulli(0.3), infer=MARK)
    w = numpyro.sample("w", dist.Normal(2.0 * common, 1.0))
    numpyro.sample("other", dist.Normal(p, 1.0), obs=other)
    with numpyro.plate("row", 3):
        z = numpyro.sample("z", dist.Bernoulli(p), infer=MARK)
        numpyro.sample("y", dist.Normal(10.0 * z + common + w, 1.0), obs=y)


MIXED = {"p": jnp.linspace(0.2, 0.8, 400), "w": jnp.linspace(-1.0, 1.0, 400)}


def test_what_was_summed_out_is_drawn_for_every_draw():
    tree = px.to_datatree(MIXED, Y, other=0.0, model=mixture, rng_key=KEY)
    theirs = Predictive(mixture, MIXED)(KEY)
    np.testing.assert_allclose(
        tree.posterior_predictive["y"][0], theirs["y"], atol=1e-4
    )
    assert (tree.posterior_predictive["y"].std(("chain", "draw")) > 4.0).all()


def test_the_log_likelihood_of_what_was_summed_out_is_the_marginal():
    plain = px.to_datatree(MIXED, Y, other=0.0, model=mixture)
    assert set(plain.log_likelihood.data_vars) == {"other"}
    assert "lp" not in plain.get("sample_stats", {})
    tree = px.to_datatree(
        MIXED, Y, other=0.0, model=mixture, log_likelihood=["y", "other"]
    )
    p, w = (np.asarray(MIXED[n])[:, None] for n in ("p", "w"))
    terms = [
        np.log(of_common)
        + np.log(of_z)
        + stats.norm.logpdf(np.asarray(Y), 10.0 * z + common + w, 1.0)
        for common, of_common in ((0, 0.7), (1, 0.3))
        for z, of_z in ((0, 1 - p), (1, p))
    ]
    np.testing.assert_allclose(
        tree.log_likelihood["y"][0], logsumexp(terms, axis=0), rtol=1e-4
    )
    np.testing.assert_allclose(
        tree.log_likelihood["other"][0], stats.norm.logpdf(0.0, p[:, 0]), rtol=1e-4
    )
    priors = [
        np.log(q) + stats.norm.logpdf(w[:, 0], 2.0 * common)
        for common, q in ((0, 0.7), (1, 0.3))
    ]
    np.testing.assert_allclose(
        tree.log_prior["w"][0], logsumexp(priors, axis=0), rtol=1e-4
    )


def coupled(y=None):
    with numpyro.plate("row", 3):
        z = numpyro.sample("z", dist.Bernoulli(0.5), infer=MARK)
    p = numpyro.sample("p", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z.sum() + p, 1.0), obs=y)


def hidden(y=None):
    p = numpyro.sample("p", dist.Normal(0.0, 1.0))

    def step(before, now):
        z = numpyro.sample("z", dist.Bernoulli(0.5), infer=MARK)
        return z, numpyro.sample("y", dist.Normal(before + z + p, 1.0), obs=now)

    scan(step, 0, y, length=3)


@pytest.mark.parametrize(
    ("model", "y", "why"),
    [(coupled, 1.0, r"on the plates \['row'\]"), (hidden, Y, "inside a scan")],
)
def test_a_marginal_that_cannot_be_had_is_refused(model, y, why):
    with pytest.raises(ValueError, match=rf"discrete latents \['z'\].*{why}"):
        px.to_datatree({"p": jnp.ones(3)}, y, model=model, log_likelihood=["y"])
    assert "log_likelihood" not in px.to_datatree({"p": jnp.ones(3)}, y, model=model)


def line(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    f = numpyro.deterministic("f", a * x)
    numpyro.sample("y", dist.Normal(f, 1.0).to_event(1), obs=y)


@pytest.fixture(scope="module")
def run_of_line():
    mcmc = MCMC(NUTS(line), num_warmup=5, num_samples=6, progress_bar=False)
    mcmc.run(KEY, X, X)
    return mcmc


@pytest.mark.parametrize("number", [5, 3, 0])
def test_deterministic_sites_are_those_of_the_data_that_are_given(run_of_line, number):
    mcmc = run_of_line
    x = jnp.full(number, 7.0)
    trained = px.to_datatree(mcmc, X, y=X, predictions=(x,))
    for source in (mcmc.get_samples(), mcmc, trained):
        tree = px.to_datatree(source, x, y=x, model=line)
        a = np.asarray(mcmc.get_samples()["a"])[:, None]
        np.testing.assert_allclose(
            tree.posterior["f"][0], np.broadcast_to(7.0 * a, (6, number)), rtol=1e-5
        )
        by_hand = stats.norm.logpdf(np.asarray(x), 7.0 * a, 1.0).sum(-1)
        np.testing.assert_allclose(tree.log_likelihood["y"][0], by_hand, rtol=1e-4)
    np.testing.assert_allclose(
        trained.predictions["f"][0], np.broadcast_to(7.0 * a, (6, number)), rtol=1e-5
    )


def test_one_observation_of_many_counts_once():
    def model(x, y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 100, subsample_size=x.shape[0]):
            numpyro.sample("y", dist.Normal(a * x, 1.0), obs=y)

    for number in (1, 20):
        x = jnp.ones(number)
        tree = px.to_datatree({"a": jnp.zeros(4)}, x, y=x, model=model)
        assert tree.log_likelihood["y"].shape == (1, 4, number)
        lp = stats.norm.logpdf(0.0) + number * stats.norm.logpdf(1.0)
        np.testing.assert_allclose(tree.sample_stats["lp"], lp, rtol=1e-5)


def smooth(y=None):
    drift = numpyro.sample("drift", dist.HalfNormal(1.0))

    def step(before, now):
        state = numpyro.sample("state", dist.Normal(before + drift, 0.5))
        return state, numpyro.sample("y", dist.Normal(state, 0.3), obs=now)

    scan(step, jnp.zeros(()), y, length=4)


def test_a_scan_with_latents_has_every_group():
    y = jnp.arange(4.0)
    mcmc = CompiledMCMC(NUTS(smooth), num_warmup=5, num_samples=6, progress_bar=False)
    mcmc.run(KEY, y, extra_fields=("potential_energy",))
    tree = px.to_datatree(mcmc, y, rng_key=KEY)
    draws = mcmc.get_samples()
    np.testing.assert_array_equal(tree.posterior["state"][0], draws["state"])
    by_hand = stats.norm.logpdf(np.asarray(y), np.asarray(draws["state"]), 0.3)
    np.testing.assert_allclose(tree.log_likelihood["y"][0], by_hand, rtol=1e-4)
    theirs = Predictive(smooth, draws)(KEY)["y"]
    np.testing.assert_allclose(tree.posterior_predictive["y"][0], theirs, rtol=1e-5)
    computed = px.to_datatree(draws, y, model=smooth)
    np.testing.assert_allclose(
        computed.sample_stats["lp"], tree.sample_stats["lp"], rtol=1e-4
    )


class Normed(eqx.Module):
    norm: eqx.nn.BatchNorm
    slope: jax.Array

    def __init__(self):
        self.norm = eqx.nn.BatchNorm(1, "b", mode="batch")
        self.slope = jnp.zeros(())


NET, START = eqx.nn.make_with_state(Normed)()


def normed(net):
    def model(x, y=None):
        with px.bayesianize(where="*.slope"):
            bound = px.bind(net, "net")
        state = mutable("state", {"now": START})
        h, state["now"] = jax.vmap(
            bound.norm, axis_name="b", in_axes=(0, None), out_axes=(0, None)
        )(x[:, None], state["now"])
        numpyro.deterministic("h", h[:, 0])
        f = numpyro.deterministic("f", bound.slope * h[:, 0])
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Normal(f, 0.1), obs=y)

    return model


def test_the_state_of_an_svi_run_reaches_every_group_and_predict():
    x = 10.0 + 3.0 * X
    guide = autoguide.AutoNormal(normed(NET))
    svi = CompiledSVI(normed(NET), guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    fit = svi.run(KEY, 300, x, X, progress_bar=False)
    model = normed(eqx.nn.inference_mode(NET))
    everything = {**fit.params, **fit.state.mutable_state}
    by_hand = (np.asarray(x) - 10.0) / np.std(3.0 * np.asarray(X))
    tree = px.to_datatree(fit, x, X, guide=guide, model=model, num_samples=40)
    again = px.to_datatree(everything, x, X, guide=guide, model=model, num_samples=40)
    anew = px.to_datatree(tree, x, X, model=model)
    for each in (tree, again, anew):
        np.testing.assert_allclose(each.posterior["h"][0, 0], by_hand, atol=0.02)
        parts = {n for n in each.params.data_vars if n.startswith("state.now.")}
        assert len(parts) == len(jax.tree.leaves(fit.state.mutable_state))
        predicted = px.predict(model, each, x, sites=["h"])["h"].mean
        np.testing.assert_allclose(predicted, by_hand, atol=0.02)
    draws = {"net.slope": tree.posterior["net.slope"].values[0]}
    predicted = px.predict(model, draws, x, params=everything, sites=["h"])["h"].mean
    np.testing.assert_allclose(predicted, by_hand, atol=0.02)
    spread = np.abs(by_hand) * draws["net.slope"].std()
    call = ModelCall(model, (x,), {}, {})
    probed = function_statistics(anew, call, ["f"], None, False)
    np.testing.assert_allclose(probed.std, spread, rtol=0.05, atol=1e-3)
    for params in (None, fit.params):
        with pytest.raises(ValueError, match=r"\['state'\].*mutable_state"):
            px.predict(model, draws, x, params=params)
    with pytest.raises(ValueError, match=r"\['state'\].*mutable_state"):
        px.to_datatree(fit.params, x, X, guide=guide, model=model)


def test_a_network_kept_as_a_param_of_arrays_predicts_from_its_tree():
    def model(x, y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        net = numpyro.param("net", {"w": [jnp.ones(2), jnp.ones(())]})
        mean = a * net["w"][0].sum() * x + net["w"][1]
        numpyro.sample("y", dist.Normal(mean, 1e-3).to_event(1), obs=y)

    params = {"net": {"w": [jnp.array([1.0, 2.0]), jnp.array(5.0)]}}
    draws = {"a": jnp.ones(3)}
    tree = px.to_datatree(draws, X, X, model=model, params=params)
    ours = px.predict(model, tree, X)["y"].mean
    np.testing.assert_allclose(ours, 3.0 * X + 5.0, atol=0.01)
    with pytest.raises(ValueError, match=r"'net\.w\.0' of shape \(2,\)"):
        px.predict(model, draws, X, params={"net.w.0": jnp.ones(3)})


def test_a_tree_without_the_models_arguments_says_what_to_give(run_of_line):
    with pytest.raises(ValueError, match=r"argument: 'x'.*arguments of mcmc\.run"):
        px.to_datatree(run_of_line)
    with pytest.raises(ValueError, match="cannot be called"):
        px.to_datatree(run_of_line, X, X, predictions={"z": X})
