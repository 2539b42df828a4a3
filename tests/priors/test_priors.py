"""Priors: each log density against the same prior by hand, and bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import make_mlp, sites
from numpyro.handlers import seed, trace
from numpyro.infer.util import log_density

import pyrox_ppl as px
from pyrox_ppl import priors

LINEAR = eqx.nn.Linear(4, 3, key=jax.random.key(0))
WEIGHT = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
BIAS = jnp.linspace(0.2, 0.8, 3)


def model(rule):
    def inner():
        with px.bayesianize(prior=rule):
            px.bind(LINEAR, "net")

    return inner


# The scale of a (3, 4) weight and its bias: fan-in 4, fan-out 3 and (the bias) 3.
FIXED = {
    "normal": (priors.normal(0.3), lambda at: dist.Normal(0.0, 0.3)),
    "fan_in": (priors.fan_in(3.0), lambda at: dist.Normal(0.0, 1.5)),
    "glorot": (priors.glorot(2.0), lambda at: dist.Normal(0.0, 2 * (2 / 7) ** 0.5)),
    "kaiming": (priors.kaiming(), lambda at: dist.Normal(0.0, 0.5**0.5)),
    "kaiming_leaky": (priors.kaiming(0.5), lambda at: dist.Normal(0.0, 0.4**0.5)),
    "laplace": (priors.laplace(0.6), lambda at: dist.Laplace(0.0, 0.3)),
    "student_t": (priors.student_t(4.0, 0.6), lambda at: dist.StudentT(4.0, 0.0, 0.3)),
    "around": (priors.around_stored(0.2), lambda at: dist.Normal(at, 0.2)),
}


@pytest.mark.parametrize("name", FIXED)
def test_log_density_is_that_of_the_prior_by_hand(name):
    rule, by_hand = FIXED[name]
    params = {"net.weight": WEIGHT, "net.bias": BIAS}
    ours, _ = log_density(model(rule), (), {}, params)

    def hand_written():
        for leaf, at in (("weight", LINEAR.weight), ("bias", LINEAR.bias)):
            numpyro.sample(
                f"net.{leaf}", by_hand(at).expand(at.shape).to_event(at.ndim)
            )

    theirs, _ = log_density(hand_written, (), {}, params)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_rows_of_an_embedding_have_the_scale_of_the_rule():
    table = eqx.nn.Embedding(6, 64, key=jax.random.key(0))
    readout = eqx.nn.Linear(64, 6, use_bias=False, key=jax.random.key(1))
    tied = (table, eqx.tree_at(lambda linear: linear.weight, readout, table.weight))

    def scale_of(module):
        with seed(rng_seed=0), trace() as sites, px.bayesianize(prior=priors.fan_in()):
            px.bind(module, "net")
        (site,) = sites.values()
        return np.unique(np.asarray(site["fn"].variance) ** 0.5)

    np.testing.assert_allclose(scale_of(table), 1.0)
    np.testing.assert_allclose(scale_of(tied), 1 / 8, rtol=1e-6)


def hierarchical_by_hand():
    for leaf, shape in (("weight", (3, 4)), ("bias", (3,))):
        scale = numpyro.sample(f"net.{leaf}.scale", dist.HalfNormal(0.7))
        noise = dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))
        noise = numpyro.sample(f"net.{leaf}_decentered", noise)
        numpyro.deterministic(f"net.{leaf}", scale / 2.0 * noise)


def horseshoe_by_hand():
    for leaf, shape in (("weight", (3, 4)), ("bias", (3,))):
        tau = numpyro.sample(f"net.{leaf}.scale", dist.HalfCauchy(0.7))
        local = dist.HalfCauchy(1.0).expand(shape).to_event(len(shape))
        lam = numpyro.sample(f"net.{leaf}.local_scale", local)
        noise = dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))
        noise = numpyro.sample(f"net.{leaf}_decentered", noise)
        # Piironen and Vehtari (2017), equation 2.8, at the global scale tau / sqrt(4).
        tau, slab2 = tau / 2.0, 1.5**2
        lam_tilde = jnp.sqrt(slab2 * lam**2 / (slab2 + tau**2 * lam**2))
        numpyro.deterministic(f"net.{leaf}", tau * lam_tilde * noise)


@pytest.mark.parametrize(
    ("rule", "by_hand"),
    [
        (priors.hierarchical(dist.HalfNormal(0.7)), hierarchical_by_hand),
        (priors.horseshoe(0.7, slab=1.5), horseshoe_by_hand),
    ],
)
def test_a_learned_scale_is_that_of_the_model_by_hand(rule, by_hand):
    ours, theirs = (
        sites(m, types=("sample", "deterministic")) for m in (model(rule), by_hand)
    )
    assert set(ours) == set(theirs)
    given = {n: s["value"] for n, s in theirs.items() if s["type"] == "sample"}
    (density, trace), (expected, hand_trace) = (
        log_density(m, (), {}, given) for m in (model(rule), by_hand)
    )
    np.testing.assert_allclose(density, expected, rtol=1e-5)
    for name in ("net.weight", "net.bias"):
        np.testing.assert_allclose(
            trace[name]["value"], hand_trace[name]["value"], rtol=1e-5
        )


def test_rules_combine_by_name():
    rule = {"*.bias": priors.normal(0.1), "*": priors.fan_in()}
    found = sites(model(rule))
    np.testing.assert_allclose(found["net.bias"]["fn"].variance, 0.01, rtol=1e-5)
    np.testing.assert_allclose(found["net.weight"]["fn"].variance, 0.25, rtol=1e-5)


def test_around_keeps_the_centre_of_a_tied_array_and_of_bfloat16():
    stored = jnp.asarray([1.0, 2.0], jnp.bfloat16)

    def tied():
        with px.bayesianize(prior=priors.around_stored(1e-3)):
            return px.bind({"a": stored, "b": stored}, "t")

    found = sites(tied)
    assert list(found) == ["t.a"]
    np.testing.assert_allclose(found["t.a"]["value"], [1.0, 2.0], atol=0.01)


@pytest.mark.rank_promotion
def test_around_a_bound_module_pools_towards_it():
    def grouped():
        with px.bayesianize(prior=priors.normal()):
            common = px.bind(LINEAR, "common")
        with (
            px.bayesianize(prior=priors.around_stored(1e-4)),
            numpyro.plate("group", 5),
        ):
            return px.bind(common, "own", plate="group").weight, common.weight

    own, common = numpyro.handlers.seed(grouped, 0)()
    np.testing.assert_allclose(own, np.broadcast_to(common, own.shape), atol=1e-3)
    assert not np.allclose(common, LINEAR.weight, atol=1e-2)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: priors.normal(0.0), ValueError, "std must be positive"),
        (lambda: priors.fan_in(-1.0), ValueError, "std must be positive"),
        (lambda: priors.glorot(float("nan")), ValueError, "gain must be"),
        (lambda: priors.kaiming(float("inf")), ValueError, "negative_slope"),
        (lambda: priors.laplace(jnp.array([1.0, -1.0])), ValueError, "scale must be"),
        (lambda: priors.student_t(df=0.0), ValueError, "df must be"),
        (lambda: priors.around_stored(float("inf")), ValueError, "finite"),
        (lambda: priors.horseshoe(slab=0.0), ValueError, "slab must be"),
        (lambda: priors.normal("wide"), TypeError, "positive number"),
        (lambda: priors.hierarchical(0.5), TypeError, r"normal\(std\)"),
        (lambda: priors.hierarchical(dist.Normal()), ValueError, "one positive"),
        (lambda: priors.hierarchical(dist.Poisson(1.0)), ValueError, "one positive"),
        (
            lambda: priors.hierarchical(dist.HalfNormal(jnp.ones(2))),
            ValueError,
            r"shape \(2,\)",
        ),
        (lambda: priors.NonCentered(dist.LogNormal()), ValueError, "real numbers"),
        (lambda: priors.NonCentered(dist.Beta(1.0, 1.0)), TypeError, "loc and a scale"),
    ],
)
def test_a_scale_that_is_none_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    "rule",
    [
        priors.normal(jnp.ones(5)),
        priors.around_stored(jnp.ones((2, 3, 4))),
        lambda p: priors.NonCentered(dist.Normal(jnp.zeros(5), 1.0)),
    ],
)
def test_a_prior_that_does_not_fit_the_shape_is_refused(rule):
    with pytest.raises(ValueError, match=r"'net\.weight'.*does not broadcast"):
        sites(model(rule))


def test_positive_scales_of_other_kinds_are_taken():
    for scale in (dist.Gamma(2.0, 1.0), dist.Uniform(0.0, 2.0), dist.LogNormal()):
        assert "net.weight.scale" in sites(model(priors.hierarchical(scale)))


def test_the_default_rules_reach_every_layer_of_a_network():
    def network():
        with px.bayesianize(prior=priors.hierarchical()):
            px.bind(make_mlp(), "net")

    scales = [name for name in sites(network) if name.endswith(".scale")]
    assert len(scales) == 4  # a weight and a bias of each of two layers
