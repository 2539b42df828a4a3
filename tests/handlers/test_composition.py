"""Parameters made sites compose with NumPyro's own handlers and inference."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import BIAS, OBSERVED, ROWS, WEIGHT, H, Z, make_film, run, sites
from models import film_regression as model
from numpyro import handlers
from numpyro.infer import (
    MCMC,
    NUTS,
    Predictive,
    log_likelihood,
)
from numpyro.infer.inspect import get_model_relations
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from numpyro.infer.util import log_density

import pyrox_ppl as px

FILM = make_film()


def by_hand(h, y=None):
    prior = dist.Normal(0.0, 0.5)
    weight = numpyro.sample(WEIGHT, prior.expand((6, 2)).to_event(2))
    bias = numpyro.sample(BIAS, prior.expand((6,)).to_event(1))
    beta, raw = jnp.split(weight @ Z + bias, 2)
    mean = (1.0 + jnp.tanh(raw))[None] * h + beta[None]
    with numpyro.plate("row", h.shape[0]):
        numpyro.sample("y", dist.Normal(mean, 0.3).to_event(1), obs=y)


def test_seed_and_trace_draw_what_the_model_by_hand_draws():
    ours, theirs = sites(model, ROWS, seed=3), sites(by_hand, ROWS, seed=3)
    assert list(ours) == list(theirs)
    for name, site in ours.items():
        np.testing.assert_allclose(site["value"], theirs[name]["value"], rtol=1e-5)


def test_log_density_is_that_of_the_model_by_hand():
    for seed in range(5):
        keys = jax.random.split(jax.random.key(seed))
        params = {
            WEIGHT: jax.random.normal(keys[0], (6, 2)),
            BIAS: jax.random.normal(keys[1], (6,)),
        }
        ours, _ = log_density(model, (ROWS, OBSERVED), {}, params)
        theirs, _ = log_density(by_hand, (ROWS, OBSERVED), {}, params)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_substitute_and_condition_set_the_parameter():
    data = {BIAS: jnp.arange(6.0)}
    substituted = sites(handlers.substitute(model, data), ROWS)[BIAS]
    conditioned = sites(handlers.condition(model, data), ROWS)[BIAS]
    np.testing.assert_array_equal(substituted["value"], data[BIAS])
    assert not substituted["is_observed"]
    np.testing.assert_array_equal(conditioned["value"], data[BIAS])
    assert conditioned["is_observed"]


def test_the_module_computes_with_the_conditioned_value():
    def call():
        with px.bayesianize(where="*.bias"):
            return FILM(H, Z)

    identity = {BIAS: FILM.generator.bias}
    value = run(handlers.condition(call, identity))
    np.testing.assert_allclose(value, FILM(H, Z), rtol=1e-6)


def test_block_hides_and_scope_and_replay_rename_and_repeat():
    assert list(sites(handlers.block(model, hide=[BIAS]), ROWS)) == [WEIGHT, "y"]
    scoped = sites(handlers.scope(model, prefix="a"), ROWS)
    assert list(scoped) == [f"a/{WEIGHT}", f"a/{BIAS}", "a/y"]
    first = handlers.trace(handlers.seed(model, 1)).get_trace(ROWS)
    again = sites(handlers.replay(model, first), ROWS, seed=2)
    np.testing.assert_array_equal(again[WEIGHT]["value"], first[WEIGHT]["value"])


def test_numpyros_scope_inside_the_block_separates():
    def both():
        with px.bayesianize():
            with handlers.scope(prefix="a", divider="."):
                FILM(H, Z)
            FILM(H, Z)

    assert list(sites(both)) == [f"a.{WEIGHT}", f"a.{BIAS}", WEIGHT, BIAS]


@pytest.mark.parametrize("centered", [0.0, 0.5, None])
def test_reparam_makes_the_parameter_a_function_of_another_site(centered):
    config = {BIAS: LocScaleReparam(centered)}
    params = () if centered is not None else (f"{BIAS}_centered",)
    call = handlers.reparam(model, config=config)
    found = handlers.trace(handlers.seed(call, 0)).get_trace(ROWS)
    assert found[f"{BIAS}_decentered"]["type"] == "sample"
    assert found[BIAS]["type"] == "deterministic"
    assert all(name in found for name in params)


def test_reparam_of_a_parameter_read_twice_reads_it_once():
    def twice():
        prior = dist.TransformedDistribution(
            dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(0.0, 2.0)
        )
        with px.bayesianize(prior=prior, where="*.bias"):
            return FILM(H, Z) - FILM(H, Z)

    call = handlers.reparam(twice, config={BIAS: TransformReparam()})
    assert f"{BIAS}_base" in sites(call)
    np.testing.assert_array_equal(run(call), np.zeros(3))


def test_mask_and_scale_act_on_the_sites():
    with handlers.scale(scale=3.0):
        scaled = sites(model, ROWS)
    assert scaled[BIAS]["scale"] == 3.0
    value = {WEIGHT: jnp.ones((6, 2)), BIAS: jnp.ones(6), "y": OBSERVED}
    logp, _ = log_density(handlers.mask(model, mask=False), (ROWS,), {}, value)
    assert float(logp) == 0.0


def test_lift_and_learned_params_live_beside_it():
    def with_param(h):
        scale = numpyro.param("scale", 2.0)
        with px.bayesianize():
            return scale * FILM(h, Z)

    lifted = handlers.lift(with_param, prior={"scale": dist.HalfNormal(1.0)})
    assert list(sites(lifted, ROWS)) == ["scale", WEIGHT, BIAS]


def test_do_and_uncondition_and_infer_config():
    found = sites(handlers.do(model, data={BIAS: jnp.zeros(6)}), ROWS)
    assert found[BIAS]["is_observed"] is False
    found = sites(handlers.uncondition(model), ROWS, OBSERVED)
    assert found["y"]["value"].shape == OBSERVED.shape
    config = handlers.infer_config(model, config_fn=lambda msg: {"mark": msg["name"]})
    assert sites(config, ROWS)[BIAS]["infer"]["mark"] == BIAS


def test_model_relations_are_those_of_the_model_by_hand():
    ours, theirs = (get_model_relations(m, (ROWS, OBSERVED)) for m in (model, by_hand))
    assert ours == theirs
    assert ours["sample_sample"]["y"] == [WEIGHT, BIAS]
    assert ours["plate_sample"] == {"row": ["y"]}


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_from_prior_and_from_draws(parallel):
    prior = Predictive(model, num_samples=4, parallel=parallel)(jax.random.key(0), ROWS)
    assert prior[WEIGHT].shape == (4, 6, 2)
    assert prior["y"].shape == (4, 5, 3)
    latent = {name: prior[name] for name in (WEIGHT, BIAS)}
    again = [
        Predictive(m, latent, parallel=parallel)(jax.random.key(1), ROWS)["y"]
        for m in (model, by_hand)
    ]
    np.testing.assert_allclose(*again, rtol=1e-5, atol=1e-6)
    density = [
        log_likelihood(m, latent, ROWS, y=OBSERVED)["y"] for m in (model, by_hand)
    ]
    np.testing.assert_allclose(*density, rtol=1e-5)


def test_draws_of_another_module_are_refused_by_predictive():
    latent = {WEIGHT: jnp.zeros((4, 6, 1)), BIAS: jnp.zeros((4, 6))}
    with pytest.raises(ValueError, match="another module"):
        Predictive(model, latent)(jax.random.key(1), ROWS)


def test_nuts_draws_what_it_draws_from_the_model_by_hand():
    draws = []
    for m in (model, by_hand):
        # A few short trajectories: rounding errors grow exponentially along them.
        kernel = NUTS(m, step_size=0.01, adapt_step_size=False, max_tree_depth=3)
        mcmc = MCMC(kernel, num_warmup=0, num_samples=4, progress_bar=False)
        mcmc.run(jax.random.key(0), ROWS, OBSERVED)
        draws.append(mcmc.get_samples()[WEIGHT])
    assert not np.allclose(draws[0][0], draws[0][3], atol=1e-2)
    np.testing.assert_allclose(*draws, rtol=1e-4, atol=1e-4)


def test_a_discrete_latent_is_enumerated_beside_it():
    def mixture(h, y):
        with px.bayesianize(prior_std=0.5):
            mean = FILM(h, Z)[:, 0]
        with numpyro.plate("row", h.shape[0]):
            sign = numpyro.sample(
                "sign", dist.Bernoulli(0.5), infer={"enumerate": "parallel"}
            )
            numpyro.sample("y", dist.Normal(mean * (2 * sign - 1), 0.3), obs=y)

    settings = {"num_warmup": 5, "num_samples": 5, "progress_bar": False}
    mcmc = px.infer.CompiledMCMC(NUTS(mixture), **settings)
    with jax.numpy_rank_promotion("allow"):  # NumPyro's enumeration promotes ranks
        mcmc.run(jax.random.key(0), ROWS, OBSERVED[:, 0])
    assert mcmc.get_samples()[WEIGHT].shape == (5, 6, 2)
