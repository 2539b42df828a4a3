"""A prior in its standard form, with NumPyro's handlers inside the block."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import run, sites
from numpyro import handlers
from numpyro.infer import NUTS
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density

import pyrox_ppl as px

LINE = eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0))
W, SCALE, NOISE = "net.weight", "net.weight.scale", "net.weight_decentered"
VALUE = jnp.array([[2.0, -4.0]])


def model(*inside, plates=(), plate=None):
    with px.bayesianize(prior=px.priors.hierarchical()):
        return nested([*plates, *inside], lambda: px.bind(LINE, "net", plate=plate))


def nested(around, call):
    if not around:
        return call()
    with around[0]:
        return nested(around[1:], call)


def by_hand(*inside):
    def call():
        scale = numpyro.sample(SCALE, dist.HalfNormal(1.0))
        noise = numpyro.sample(NOISE, dist.Normal(0.0, 1.0).expand((1, 2)).to_event())
        return numpyro.deterministic(W, scale / 2**0.5 * noise)

    return nested(inside, call)


@pytest.mark.parametrize("name", ["substitute", "condition"])
@pytest.mark.parametrize(
    "data", [{SCALE: 3.0}, {NOISE: VALUE}, {SCALE: 3.0, NOISE: VALUE}]
)
def test_its_own_sites_are_set_inside(name, data):
    make = getattr(handlers, name)
    ours = sites(lambda: model(make(data=data)), types=("sample", "deterministic"))
    theirs = sites(lambda: by_hand(make(data=data)), types=("sample", "deterministic"))
    assert list(ours) == list(theirs)
    for site, expected in theirs.items():
        np.testing.assert_allclose(ours[site]["value"], expected["value"], rtol=1e-6)
        assert ours[site].get("is_observed") == expected.get("is_observed")


@pytest.mark.parametrize("name", ["scale", "mask"])
def test_the_density_under_scale_and_mask_is_that_by_hand(name):
    argument = {"scale": {"scale": 3.0}, "mask": {"mask": False}}[name]
    latent = {SCALE: jnp.array(0.7), NOISE: VALUE}
    ours, theirs = (
        log_density(lambda m=m: m(getattr(handlers, name)(**argument)), (), {}, latent)[
            0
        ]
        for m in (model, by_hand)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("scope", [None, "left"])
def test_condition_makes_it_an_observed_site_of_its_prior(place, scope):
    prefix = "" if scope is None else f"{scope}."
    scopes = () if scope is None else (px.scope(scope),)

    def conditioned():
        if place == "inside":
            return model(*scopes, handlers.condition(data={W: VALUE}))
        with handlers.condition(data={prefix + W: VALUE}):
            return model(*scopes)

    found = sites(conditioned)
    assert list(found) == [prefix + SCALE, prefix + W]
    np.testing.assert_array_equal(run(conditioned).weight, VALUE)
    value = {prefix + SCALE: jnp.array(0.7)}
    density, _ = log_density(conditioned, (), {}, value)
    by_formula = dist.HalfNormal(1.0).log_prob(0.7)
    by_formula += dist.Normal(0.0, 0.7 / 2**0.5).log_prob(VALUE).sum()
    np.testing.assert_allclose(density, by_formula, rtol=1e-6)


def test_do_fixes_the_value_and_leaves_the_law():
    done = lambda: model(handlers.do(data={W: VALUE}))  # noqa: E731 - one line each
    np.testing.assert_array_equal(run(done).weight, VALUE)
    found = sites(done)
    assert list(found) == [SCALE, W]
    assert not np.allclose(found[W]["value"], VALUE)


def test_a_scope_inside_names_what_belongs_to_the_parameter_once():
    def shared(parameter):
        spread = numpyro.sample("spread", dist.HalfNormal(1.0))
        size = numpyro.sample(f"{parameter.name}.size", dist.HalfNormal(1.0))
        return dist.Normal(0.0, spread * size)

    def scoped():
        data = {f"{W}.size": 2.0}
        inside = (px.scope("b"), handlers.substitute(data=data), numpyro.plate("r", 5))
        with px.bayesianize(prior=shared), px.scope("a"):
            return nested(inside, lambda: px.bind(LINE, "net"))

    found = sites(scoped)
    assert list(found) == ["spread", f"a.b.{W}.size", f"a.b.{W}"]
    assert found[f"a.b.{W}.size"]["value"] == 2.0
    assert all(site["cond_indep_stack"] == [] for site in found.values())


def test_reparam_inside_changes_the_sites_of_the_prior():
    def prior(parameter):
        loc = numpyro.sample(f"{parameter.name}.loc", dist.Normal(0.0, 5.0))
        return px.priors.NonCentered(dist.Normal(loc, 1.0))

    def reparametrised():
        config = {f"{W}.loc": LocScaleReparam(0.0)}
        reparam = handlers.reparam(config=config)
        with px.bayesianize(prior=prior), px.scope("a"), reparam:
            return px.bind(LINE, "net")

    assert list(sites(reparametrised)) == [f"a.{W}.loc_decentered", f"a.{NOISE}"]


@pytest.mark.parametrize("dim", [-1, -2])
def test_members_of_a_plate_are_conditioned_inside(dim):
    lead = (3,) if dim == -1 else (3, 1)
    members = jnp.arange(6.0).reshape(*lead, 1, 2)

    def conditioned():
        plates = (numpyro.plate("group", 3, dim=dim),)
        data = handlers.condition(data={W: members})
        return model(data, plates=plates, plate="group")

    np.testing.assert_array_equal(run(conditioned).weight, members.reshape(3, 1, 2))
    found = sites(conditioned)
    assert found[SCALE]["value"].shape == ()
    assert [frame.name for frame in found[W]["cond_indep_stack"]] == ["group"]


def test_the_prior_of_a_prior_is_read_outside():
    net = eqx.nn.Linear(1, 1, use_bias=False, key=jax.random.key(1))

    def prior(parameter):
        scale = px.bind(net, "of_prior").weight
        return dist.Normal(0.0, 1.0 + scale[0, 0] ** 2)

    def call():
        with px.learn(), px.bayesianize(prior=prior):
            px.bind(LINE, "net")

    found = sites(call, types=("sample", "param"))
    assert {name: site["type"] for name, site in found.items()} == {
        "of_prior.weight": "param",
        W: "sample",
    }


def test_nuts_under_jit_and_the_model_under_jit():
    x = jnp.array([[1.0, 0.0], [0.0, 1.0]])

    def regression(scale, y=None):
        net = model(handlers.condition(data={SCALE: scale}))
        mean = jax.vmap(net)(x)[:, 0]
        numpyro.sample("y", dist.Normal(mean, 0.1).to_event(), obs=y)
        return net.weight

    seeded = lambda s: handlers.seed(regression, 0)(s)  # noqa: E731 - one line each
    np.testing.assert_allclose(jax.jit(seeded)(2.0), 2.0 * seeded(1.0), rtol=1e-5)
    kernel = NUTS(regression, max_tree_depth=3)
    settings = {"num_warmup": 3, "num_samples": 3, "progress_bar": False}
    mcmc = px.infer.CompiledMCMC(kernel, **settings)
    mcmc.run(jax.random.key(0), 2.0, y=jnp.ones(2))
    draws = mcmc.get_samples()
    np.testing.assert_allclose(draws[W], 2**0.5 * draws[NOISE], rtol=1e-5)
