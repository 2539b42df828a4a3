"""A read is a site where it stands: NumPyro's handlers inside a block act on it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import H, Z, film_laws, make_film, run, sites
from numpyro import handlers
from numpyro.infer import NUTS, Predictive, Trace_ELBO
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density

import pyrox_ppl as px

LINE = eqx.nn.Linear(2, 1, key=jax.random.key(0))
W, B = "net.weight", "net.bias"
WEIGHT, BIAS = jnp.array([[3.0, -1.0]]), jnp.array([7.0])
GIVEN = {W: WEIGHT, B: BIAS}


def replayed():
    trace = {
        name: {"type": "sample", "value": v, "infer": {}, "is_observed": False}
        for name, v in GIVEN.items()
    }
    return handlers.replay(trace=trace)


def infer_config():
    return handlers.infer_config(config_fn=lambda site: {"mark": site["name"]})


def hidden(site):
    return site["type"] == "sample" and site["name"] == B


MADE = {
    "substitute": lambda: handlers.substitute(data=GIVEN),
    "substitute_fn": lambda: handlers.substitute(
        substitute_fn=lambda s: GIVEN[s["name"]]
    ),
    "condition": lambda: handlers.condition(data=GIVEN),
    "condition_fn": lambda: handlers.condition(condition_fn=lambda s: GIVEN[s["name"]]),
    "do": lambda: handlers.do(data={W: WEIGHT}),
    "scale": lambda: handlers.scale(scale=3.0),
    "mask": lambda: handlers.mask(mask=False),
    "reparam": lambda: handlers.reparam(config={W: LocScaleReparam(0.0)}),
    "infer_config": infer_config,
    "replay": replayed,
    "block": handlers.block,
    "block_hide": lambda: handlers.block(hide=[B]),
    "block_hide_fn": lambda: handlers.block(hide_fn=hidden),
    "block_expose": lambda: handlers.block(expose=[B]),
    "block_types": lambda: handlers.block(expose_types=["param"]),
    "seed": lambda: handlers.seed(rng_seed=3),
    "trace": handlers.trace,
    "uncondition": handlers.uncondition,
}


def by_hand(inside, scope=None):
    with inside:
        weight = numpyro.sample(W, dist.Normal(0.0, 2.0).expand((1, 2)).to_event())
        bias = numpyro.sample(B, dist.Normal(0.0, 2.0).expand((1,)).to_event())
    numpyro.sample("y", dist.Normal(weight.sum() + bias.sum(), 1.0), obs=0.5)


def by_block(inside):
    with px.bayesianize(prior_std=2.0), inside:
        net = px.bind(LINE, "net")
    numpyro.sample("y", dist.Normal(net.weight.sum() + net.bias.sum(), 1.0), obs=0.5)


def record(model):
    trace = handlers.trace(handlers.seed(model, 0)).get_trace()
    return {
        name: (
            site["type"],
            site.get("is_observed"),
            site.get("scale"),
            site.get("infer", {}).get("mark"),
            np.asarray(site["value"]),
            np.asarray(site["fn"].log_prob(site["value"])) if "fn" in site else None,
        )
        for name, site in trace.items()
    }


@pytest.mark.parametrize("name", MADE)
def test_each_handler_inside_acts_as_on_the_sites_by_hand(name):
    ours = record(lambda: by_block(MADE[name]()))
    theirs = record(lambda: by_hand(MADE[name]()))
    assert list(ours) == list(theirs)
    for site, values in theirs.items():
        assert ours[site][:4] == values[:4]
        np.testing.assert_allclose(ours[site][4], values[4], rtol=1e-5)
        if values[5] is not None:
            np.testing.assert_allclose(ours[site][5], values[5], rtol=1e-5)


@pytest.mark.parametrize("name", ["substitute", "do", "scale", "mask", "condition"])
def test_the_density_is_that_by_hand(name):
    latent = {W: jnp.array([[0.3, -0.2]]), B: jnp.array([0.1])}
    ours, theirs = (
        log_density(model, (), {}, latent)[0]
        for model in (lambda: by_block(MADE[name]()), lambda: by_hand(MADE[name]()))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_trained_values_given_inside_a_learn_block_are_used():
    with px.learn(), handlers.substitute(data=GIVEN):
        net = px.bind(LINE, "net")
    np.testing.assert_array_equal(net.bias, BIAS)
    np.testing.assert_array_equal(net.weight, WEIGHT)


def test_a_value_given_inside_needs_no_seed_and_a_missing_one_is_named():
    with px.bayesianize(), handlers.substitute(data=GIVEN):
        assert px.bind(LINE, "net")(jnp.ones(2)) == 9.0
    with (
        pytest.raises(ValueError, match=r"net\.bias.*seed"),
        px.bayesianize(),
        handlers.substitute(data={W: WEIGHT}),
    ):
        px.bind(LINE, "net")


def test_lift_inside_gives_a_learned_parameter_a_prior():
    law = dist.Normal(5.0, 0.1).expand((1,)).to_event()

    def model():
        with numpyro.plate("rows", 3), px.learn(), handlers.lift(prior={B: law}):
            px.bind(LINE, "net")
            return px.bind(LINE, "net").bias

    found = sites(model, types=("sample", "param"))
    assert {name: site["type"] for name, site in found.items()} == {
        W: "param",
        B: "sample",
    }
    assert 4.0 < float(run(model)[0]) < 6.0


@pytest.mark.parametrize("handler", ["substitute", "condition", "do"])
def test_names_are_those_where_the_handler_stands(handler):
    make = getattr(handlers, handler)

    def model(outer, inner):
        with px.bayesianize(), make(data=outer), px.scope("left"), make(data=inner):
            return px.bind(LINE, "net").bias

    assert run(model, {}, {B: BIAS})[0] == 7.0
    assert run(model, {f"left.{B}": BIAS}, {})[0] == 7.0
    assert run(model, {B: BIAS}, {f"left.{B}": BIAS})[0] != 7.0


@pytest.mark.parametrize("place", ["outside", "inside"])
@pytest.mark.parametrize("inner", [True, False])
def test_plates_stay_blocked_for_what_reparam_makes(place, inner):
    def model():
        plate, block = numpyro.plate("rows", 5), px.bayesianize(where="*.weight")
        reparam = MADE["reparam"]()
        order = (plate, block) if place == "outside" else (block, plate)
        order = (*order, reparam) if inner else (reparam, *order)
        with order[0], order[1], order[2]:
            return px.bind(LINE, "net")

    found = sites(model, types=("sample", "deterministic"))
    assert {n: s["value"].shape for n, s in found.items()} == {
        f"{W}_decentered": (1, 2),
        W: (1, 2),
    }
    assert all(site["cond_indep_stack"] == [] for site in found.values())


@pytest.mark.parametrize("inside", [True, False])
def test_the_members_of_a_plate_are_given_inside(inside):
    members = jnp.arange(3.0).reshape(3, 1)

    def model():
        plate, block = numpyro.plate("group", 3), px.bayesianize()
        order = (block, plate) if inside else (plate, block)
        with order[0], order[1], handlers.condition(data={B: members}):
            return px.bind(LINE, "net", plate="group")

    np.testing.assert_array_equal(run(model).bias, members)
    site = sites(model)[B]
    assert site["is_observed"]
    assert [frame.name for frame in site["cond_indep_stack"]] == ["group"]
    assert site["fn"].batch_shape == (3,)


def test_a_generated_distribution_is_a_site_where_it_stands():
    def model():
        block = px.amortize(generator=film_laws, context=Z)
        data = {"film.generator.bias": jnp.arange(6.0)}
        with block, handlers.condition(data=data):
            return px.bind(make_film(), "film").generator.bias

    np.testing.assert_array_equal(run(model), np.arange(6.0))
    assert sites(model)["film.generator.bias"]["is_observed"]


def test_an_inner_block_that_passes_on_is_no_hindrance():
    def model():
        with (
            px.learn(),
            handlers.substitute(data={W: WEIGHT}),
            px.bayesianize(where="*.bias"),
            handlers.condition(data={B: BIAS}),
        ):
            return px.bind(LINE, "net")

    net = run(model)
    np.testing.assert_array_equal(net.weight, WEIGHT)
    np.testing.assert_array_equal(net.bias, BIAS)


def test_a_second_read_has_the_value_of_the_first_whatever_stands_around_it():
    def model(first, second):
        with px.bayesianize(where="*.bias"):
            with first:
                one = px.bind(LINE, "net").bias
            with second:
                return one, px.bind(LINE, "net").bias

    one, two = run(model, MADE["condition"](), handlers.scale(scale=2.0))
    assert one[0] == two[0] == 7.0
    one, two = run(model, MADE["condition"](), MADE["substitute"]())
    assert one[0] == two[0] == 7.0
    for name in ("substitute", "condition", "replay"):
        with pytest.raises(ValueError, match=rf"{name}.*gives it another"):
            run(model, handlers.scale(scale=2.0), MADE[name]())
    with pytest.raises(ValueError, match="gives it another"):
        run(model, MADE["scale"](), handlers.do(data={B: BIAS}))


def test_inference_sees_what_stands_inside():
    x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])

    def model(y=None):
        with px.bayesianize(), handlers.condition(data={B: BIAS}):
            net = px.bind(LINE, "net")
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.1), obs=y)

    def learned(y=None):
        with px.learn(), handlers.substitute(data={B: BIAS}):
            net = px.bind(LINE, "net")
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.1), obs=y)

    y = x @ WEIGHT[0] + 7.0
    kernel = NUTS(model, max_tree_depth=3)
    settings = {"num_warmup": 3, "num_samples": 3, "progress_bar": False}
    mcmc = px.infer.CompiledMCMC(kernel, **settings)
    mcmc.run(jax.random.key(0), y)
    assert list(mcmc.get_samples()) == [W]
    drawn = Predictive(model, num_samples=3)(jax.random.key(0))
    np.testing.assert_array_equal(drawn[B], np.full((3, 1), 7.0))
    optim = numpyro.optim.Adam(0.1)
    svi = px.infer.CompiledSVI(learned, lambda y=None: None, optim, Trace_ELBO())
    fit = svi.run(jax.random.key(0), 200, y, progress_bar=False)
    np.testing.assert_allclose(fit.params[W], WEIGHT, atol=0.05)


def test_the_whole_model_under_jit_is_the_same():
    def call(value):
        with px.bayesianize(), handlers.substitute(data={**GIVEN, B: value}):
            return make_bias()

    def make_bias():
        return px.bind(LINE, "net")(jnp.ones(2))

    model = handlers.seed(call, 0)
    assert jax.jit(model)(BIAS) == model(BIAS) == 9.0
    assert jax.grad(lambda b: model(b)[0])(BIAS) == 1.0


def test_what_block_hides_is_drawn_from_its_prior():
    def model():
        with px.bayesianize(prior=dist.Normal(50.0, 1.0)), handlers.block():
            return make_film()(H, Z)

    assert sites(model) == {}
    assert float(jnp.abs(run(model)).max()) > 20.0
