"""init_to_stored: parameters start at the module's arrays, whatever the prior."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import NUTS, Trace_ELBO, init_to_uniform
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density

import pyrox_ppl as px
from pyrox_ppl import infer
from pyrox_ppl.infer import (
    AmortizedGuide,
    AutoFlatNormal,
    CompiledMCMC,
    CompiledSVI,
    FlatNUTS,
    init_to_stored,
)

pytestmark = pytest.mark.rank_promotion

KEY = jax.random.key(0)
LINEAR = eqx.nn.Linear(2, 3, key=jax.random.key(1))
STORED = np.asarray(LINEAR.weight)


def make(prior, net=LINEAR, plate=None):
    def model():
        with px.bayesianize(prior=prior):
            if plate is None:
                bound = px.bind(net, "net")
            else:
                with numpyro.plate(plate, 4):
                    bound = px.bind(net, "net", plate=plate)
        numpyro.deterministic("weight", bound.weight)
        numpyro.sample("other", dist.Gamma(100.0, 1.0))

    return model


def start(model, **settings):
    """The values at which SVI would put its guide, from one run of the model."""
    at = handlers.substitute(
        handlers.seed(model, KEY), substitute_fn=init_to_stored(**settings)
    )
    trace = handlers.trace(at).get_trace()
    return {name: site["value"] for name, site in trace.items()}


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(0.0, 1.0),
        dist.StudentT(4.0, 1.0, 2.0),
        px.priors.hierarchical(),
        px.priors.horseshoe(),
        lambda _: px.priors.NonCentered(dist.Normal(3.0, 0.2)),
        dist.Laplace(0.0, 2.0),
    ],
    ids=["normal", "t", "hierarchical", "horseshoe", "non-centred", "laplace"],
)
@pytest.mark.parametrize("plate", [None, "group"])
def test_a_parameter_starts_at_the_stored_array(prior, plate):
    values = start(make(prior, plate=plate))
    shape = STORED.shape if plate is None else (4, *STORED.shape)
    np.testing.assert_allclose(
        values["weight"], np.broadcast_to(STORED, shape), rtol=1e-4, atol=1e-6
    )
    assert abs(values["other"] - 100.0) < 20.0


@pytest.mark.parametrize(
    ("prior", "is_allowed"),
    [
        (dist.HalfNormal(1.0), STORED > 0),
        (dist.Gamma(2.0, 2.0), STORED > 0),
        (dist.Uniform(-0.1, 0.5), (STORED > -0.1) & (STORED < 0.5)),
        pytest.param(
            dist.TruncatedNormal(0.0, 1.0, low=0.0), STORED > 0, marks=pytest.mark.slow
        ),
    ],
    ids=["half-normal", "gamma", "uniform", "truncated"],
)
def test_an_entry_that_the_prior_excludes_starts_at_the_median(prior, is_allowed):
    assert is_allowed.any()
    assert not is_allowed.all()
    model = make(prior)
    values = start(model)
    weight = np.asarray(values["weight"])
    np.testing.assert_allclose(weight[is_allowed], STORED[is_allowed], rtol=1e-5)
    assert prior.support(weight).all()
    middle = np.quantile(np.asarray(prior.sample(KEY, (2000,))), [0.1, 0.9])
    rest = weight[~is_allowed]
    assert ((rest > middle[0]) & (rest < middle[1])).all()
    with jax.debug_nans(True):
        np.testing.assert_array_equal(start(model)["weight"], weight)
    state = NUTS(model, init_strategy=init_to_stored).init(KEY, 5)
    assert np.isfinite(state.potential_energy)


def test_the_edge_of_a_support_is_no_start():
    """The log-lengthscale and the like: a stored zero under a prior above zero."""
    edges = eqx.tree_at(lambda m: m.weight, LINEAR, jnp.zeros((3, 2)).at[0, 0].set(1.0))
    for prior in (dist.Uniform(0.0, 1.0), dist.Exponential(1.0)):
        model = make(prior, edges)
        state = FlatNUTS(model).init(KEY, 5)
        assert np.isfinite(state.potential_energy)
        assert np.isfinite(state.z_grad).all()


def test_an_event_that_depends_on_all_entries_starts_there_or_at_the_median():
    simplex = jnp.array([0.2, 0.3, 0.5])
    law = dist.Dirichlet(jnp.ones(3))
    for weight, kept in ((simplex, True), (simplex + 0.5, False)):

        def model(weight=weight):
            with px.bayesianize(prior=lambda _: law):
                numpyro.deterministic("p", px.bind({"p": weight}, "net")["p"])

        values = start(model)
        assert np.allclose(values["p"], weight, atol=1e-5) == kept
        np.testing.assert_allclose(np.sum(values["p"]), 1.0, rtol=1e-5)


def test_ties_reparameterisation_dtype_and_other_types_of_sites():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), LINEAR)
    values = start(make(dist.Normal(0.0, 1.0), half))
    assert values["weight"].dtype == jnp.bfloat16
    state = NUTS(
        make(dist.Normal(0.0, 1.0), half), init_strategy=init_to_stored()
    ).init(KEY, 5)
    assert state.z["net.weight"].dtype == jnp.float32
    np.testing.assert_array_equal(
        state.z["net.weight"], half.weight.astype(jnp.float32)
    )
    config = {"net.weight": numpyro.infer.reparam.LocScaleReparam(0.0)}
    taken_apart = handlers.reparam(make(dist.Normal(0.0, 1.0)), config=config)
    values = start(taken_apart)
    np.testing.assert_array_equal(values["net.bias"], LINEAR.bias)
    assert np.abs(values["net.weight_decentered"]).max() < 1.5
    assert init_to_stored({"type": "param", "is_observed": False}) is None


def test_kernels_and_guides_start_there():
    model = make(px.priors.hierarchical())
    guides = [AutoFlatNormal(model), AutoNormal(model, init_loc_fn=init_to_stored)]
    points = []
    for guide in guides:
        svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
        params = svi.get_params(svi.init(KEY))
        points.append(guide.median(params))
    for point in points:
        np.testing.assert_allclose(point["weight"], STORED, rtol=1e-4, atol=1e-6)
    mcmc = CompiledMCMC(
        FlatNUTS(model, step_size=1e-6, adapt_step_size=False, max_tree_depth=1),
        num_warmup=0,
        num_samples=1,
        num_chains=2,
        progress_bar=False,
    )
    mcmc.run(KEY)
    for weight in mcmc.get_samples()["weight"]:
        np.testing.assert_allclose(weight, STORED, atol=1e-4)


def test_every_guide_and_kernel_of_ours_starts_there_by_default():
    defaults = {}
    for name in infer.__all__:
        if isinstance(getattr(infer, name), type):
            arguments = inspect.signature(getattr(infer, name)).parameters
            for start in {"init_loc_fn", "init_strategy"} & arguments.keys():
                defaults[name] = arguments[start].default
    assert {"AutoFlatNormal", "AutoSWAG", "FlatNUTS"} <= defaults.keys()
    assert set(defaults.values()) == {init_to_stored}, defaults


def test_the_other_latents_of_an_amortized_guide_start_there():
    def model(y):
        with px.bayesianize():
            numpyro.deterministic("w", px.bind(LINEAR, "net").weight)
        with numpyro.plate("row", len(y)):
            u = numpyro.sample("u", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(u, 1.0), obs=y)

    encoder = eqx.nn.MLP("scalar", 2, 2, 1, key=KEY)
    guide = AmortizedGuide(model, encoder, plate="row", context=lambda y: y)
    svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(KEY, jnp.ones(3)))
    np.testing.assert_array_equal(params["net.weight_auto_loc"], STORED)


class Classifier(eqx.Module):
    conv: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __call__(self, image):
        h = jax.nn.relu(self.conv(image)).reshape(-1)
        return self.head(h)


def test_a_convolutional_classifier_starts_at_a_far_lower_loss():
    one, two, three = jax.random.split(KEY, 3)
    net = Classifier(
        eqx.nn.Conv2d(1, 4, 3, padding=1, key=one), eqx.nn.Linear(256, 3, key=two)
    )
    images = jax.random.normal(three, (20, 1, 8, 8))
    labels = jnp.arange(20) % 3

    def model():
        with px.bayesianize():
            bound = px.bind(net, "net")
        with numpyro.plate("row", 20):
            logits = jax.vmap(bound)(images)
            numpyro.sample("label", dist.Categorical(logits=logits), obs=labels)

    losses = {}
    for init in (init_to_stored, init_to_uniform):
        guide = AutoFlatNormal(model, init_loc_fn=init, init_scale=1e-3)
        svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
        state = svi.init(KEY)
        at = guide.median(svi.get_params(state))
        sites = {name: at[name] for name in at if name.startswith("net")}
        prior = sum(float(jnp.sum(dist.Normal(0, 1).log_prob(v))) for v in at.values())
        density = jax.jit(lambda sites: log_density(model, (), {}, sites)[0])
        losses[init] = prior - float(density(sites))
    logits = jax.vmap(net)(images)
    exact = -jnp.sum(jax.nn.log_softmax(logits)[jnp.arange(20), labels])
    np.testing.assert_allclose(losses[init_to_stored], exact, rtol=1e-3)
    assert losses[init_to_uniform] > 5.0 * losses[init_to_stored]
