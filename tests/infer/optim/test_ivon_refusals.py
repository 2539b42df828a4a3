"""IVON takes the normals of a guide, and nothing that only looks like them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO, autoguide
from numpyro.optim import SGD, Adam

from pyrox_ppl.infer import IVON

pytestmark = pytest.mark.rank_promotion
KEY = jax.random.key(0)


def model():
    numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def normal(loc="w_loc", scale="w_scale", constraint=constraints.positive, scales=2):
    m = numpyro.param(loc, jnp.zeros(2))
    s = numpyro.param(scale, jnp.ones(scales), constraint=constraint)
    return numpyro.sample("w", dist.Normal(m, s).to_event(1))


def step(guide, model=model, **kwargs):
    svi = SVI(model, guide, IVON(0.1, **kwargs), Trace_ELBO())
    state = svi.init(KEY)
    return svi.get_params(state), svi.get_params(jax.jit(svi.update)(state)[0])


@pytest.mark.parametrize("name", ["AutoMultivariateNormal", "AutoDelta", "AutoLaplace"])
def test_a_guide_without_pairs_is_refused(name):
    name = name.replace("AutoLaplace", "AutoLaplaceApproximation")
    with pytest.raises(ValueError, match=r"no pair of param sites.*_loc"):
        step(getattr(autoguide, name)(model))


def test_a_guide_whose_names_alone_are_those_of_a_normal_is_refused():
    with pytest.raises(ValueError, match="at 0 sites instead of one"):
        step(autoguide.AutoLowRankMultivariateNormal(model))


def half_normal_prior():
    loc = numpyro.param("w_loc", jnp.zeros(2))
    scale = numpyro.param("w_scale", jnp.ones(2), constraint=constraints.positive)
    numpyro.sample("w", dist.Laplace(loc, scale).to_event(1))


def shifted():
    loc = numpyro.param("w_loc", jnp.zeros(2))
    scale = numpyro.param("w_scale", jnp.ones(2), constraint=constraints.positive)
    numpyro.sample("w", dist.Normal(loc + 1.0, scale).to_event(1))


def shared():
    """One normal, two draws."""
    loc = numpyro.param("w_loc", 0.0)
    scale = numpyro.param("w_scale", 1.0, constraint=constraints.positive)
    numpyro.sample("w", dist.Normal(loc, scale).expand([2]).to_event(1))


def twice():
    loc = numpyro.param("w_loc", jnp.zeros(2))
    scale = numpyro.param("w_scale", jnp.ones(2), constraint=constraints.positive)
    for name in ("w", "v"):
        numpyro.sample(name, dist.Normal(loc, scale).to_event(1))


@pytest.mark.parametrize(
    ("guide", "sites"), [(half_normal_prior, 0), (shifted, 0), (shared, 0), (twice, 2)]
)
def test_what_is_no_independent_normal_is_refused(guide, sites):
    def with_two():
        model()
        if sites == 2:
            numpyro.sample("v", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    with pytest.raises(ValueError, match=f"at {sites} sites instead of one"):
        step(guide, with_two)


@pytest.mark.parametrize(
    "constraint", [constraints.greater_than(0.1), constraints.interval(0.1, 2.0)]
)
def test_another_constraint_is_refused(constraint):
    with pytest.raises(ValueError, match=r"'w_scale' has .*softplus_positive or"):
        step(lambda: normal(constraint=constraint))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2,\) and 'w_scale' has \(1,\)"):
        step(lambda: normal(scales=1))


def test_names_that_tell_no_pair_are_given():
    def guide():
        return normal("middle", "width")

    with pytest.raises(ValueError, match="no pair of param sites"):
        step(guide)
    before, after = step(guide, pairs={"middle": "width"})
    assert set(before) == {"middle", "width"}
    assert all((before[name] != after[name]).all() for name in before)
    with pytest.raises(ValueError, match=r"names \['with'\], but the param sites are"):
        step(guide, pairs={"middle": "with"})


def two():
    numpyro.sample("v", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    model()


def guide_of_two():
    normal()
    m = numpyro.param("m", jnp.zeros(2))
    s = numpyro.param("s", jnp.ones(2), constraint=constraints.positive)
    numpyro.sample("v", dist.Normal(m, s).to_event(1))


def test_a_normal_that_is_no_pair_by_name_is_never_left_out_silently():
    with pytest.raises(ValueError, match=r"pairs=\{'m': 's'\}"):
        step(guide_of_two, two)
    before, after = step(guide_of_two, two, pairs={"m": None}, optim=SGD(0.0))
    for name in ("m", "s"):
        np.testing.assert_allclose(before[name], after[name])
    step(guide_of_two, two, pairs={"m": "s"})


def learned_prior():
    loc = numpyro.param("prior_loc", jnp.zeros(2))
    scale = numpyro.param("prior_scale", jnp.ones(2), constraint=constraints.positive)
    numpyro.sample("w", dist.Normal(loc, scale).to_event(1))


def test_the_normal_of_a_prior_is_none_of_the_guide():
    with pytest.raises(ValueError, match="'prior_loc' and 'prior_scale' are a pair by"):
        step(autoguide.AutoNormal(learned_prior), learned_prior)
    svi = SVI(
        learned_prior,
        autoguide.AutoNormal(learned_prior),
        IVON(0.1, pairs={"prior_loc": None}, optim=Adam(0.01)),
        Trace_ELBO(),
    )
    adam = SVI(learned_prior, svi.guide, Adam(0.01), Trace_ELBO())
    one, other = (s.get_params(jax.jit(s.update)(s.init(KEY))[0]) for s in (svi, adam))
    for name in ("prior_loc", "prior_scale"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6)


def test_other_parameters_are_optaxs_if_asked():
    def guide():
        normal()
        numpyro.param("other", 1.0)

    def with_other():
        model()
        numpyro.factor("pull", -numpyro.param("other", 1.0) * 3.0)

    before, after = step(guide, with_other, optim=optax.sgd(0.1))
    assert after["other"] == pytest.approx(before["other"] - 0.3)
    with pytest.raises(TypeError, match="Expected either an instance"):
        IVON(0.1, optim="adam")


def test_it_needs_svi():
    optim = IVON(0.1)
    state = optim.init({"loc": jnp.zeros(2), "scale": jnp.zeros(2)})
    with pytest.raises(RuntimeError, match=r"call svi.update or svi.run"):
        optim.update({"loc": jnp.zeros(2), "scale": jnp.zeros(2)}, state)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
        ({"b1": 1.0}, r"b1 must be in \[0, 1\), got 1"),
        ({"b2": -0.1}, r"b2 must be in \[0, 1\), got -0.1"),
        ({"clip_radius": 0.0}, "clip_radius must be positive, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        IVON(**({"learning_rate": 0.1} | wrong))
