"""Rule 5: per-group parameters on a subsampled plate have NumPyro's own density."""

import contextlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import block, scale, seed, substitute, trace
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from numpyro.infer.util import log_density

import pyrox_ppl as px

GROUPS, SEEN = 6, 3
linear = eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0))
SITE = "slope.weight"
y = jnp.array([0.3, -0.2, 0.5])


def normal(shape, std):
    return dist.Normal(0.0, std).expand(shape).to_event(2)


def observe(weight):
    numpyro.sample("y", dist.Normal(weight.sum((-1, -2)), 0.5), obs=y)


def by_hand(kind, factor):
    """The model that NumPyro's manual would have the user write."""

    def model():
        with contextlib.ExitStack() as stack:
            if factor is not None:
                stack.enter_context(scale(scale=factor))
            std = 2.0
            if kind == "hierarchical":
                with block(hide_fn=lambda site: site["type"] == "plate"):
                    std = numpyro.sample(f"{SITE}.scale", dist.HalfNormal(1.0))
                std = std / jnp.sqrt(2.0)
            with numpyro.plate("group", GROUPS, subsample_size=SEEN):
                if kind == "centred":
                    weight = numpyro.sample(SITE, normal((1, 2), 2.0))
                else:
                    noise = numpyro.sample(f"{SITE}_decentered", normal((1, 2), 1.0))
                    weight = numpyro.deterministic(SITE, std * noise)
        with numpyro.plate("seen", SEEN):
            observe(weight)

    return model


PRIORS = {
    "centred": dist.Normal(0.0, 2.0),
    "non-centred": px.priors.NonCentered(dist.Normal(0.0, 2.0)),
    "hierarchical": px.priors.hierarchical(dist.HalfNormal(1.0)),
}


def bound(kind, factor, order):
    """The same model by `bind`, with the plate, the block and the scale in an order."""

    def model():
        prior = PRIORS[kind]
        rule = prior if kind != "non-centred" else lambda parameter: prior
        parts = {
            "block": lambda: px.bayesianize(prior=rule),
            "plate": lambda: numpyro.plate("group", GROUPS, subsample_size=SEEN),
            "scale": lambda: (
                contextlib.nullcontext() if factor is None else scale(scale=factor)
            ),
        }
        with contextlib.ExitStack() as stack:
            for part in order:
                stack.enter_context(parts[part]())
            net = px.bind(linear, "slope", plate="group")
        with numpyro.plate("seen", SEEN):
            observe(net.weight)

    return model


ORDERS = [
    ("scale", "plate", "block"),
    ("scale", "block", "plate"),
    ("block", "plate", "scale"),
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("factor", [None, 5.0])
@pytest.mark.parametrize("kind", list(PRIORS))
def test_the_density_is_that_of_the_model_by_hand(kind, factor, order):
    hand, ours = by_hand(kind, factor), bound(kind, factor, order)
    name = SITE if kind == "centred" else f"{SITE}_decentered"
    draws = {name: jax.random.normal(jax.random.key(1), (SEEN, 1, 2))}
    if kind == "hierarchical":
        draws[f"{SITE}.scale"] = jnp.array(0.7)
    expected, sites = log_density(seed(hand, 0), (), {}, draws)
    density, found = log_density(seed(ours, 0), (), {}, draws)
    np.testing.assert_allclose(density, expected, rtol=1e-6)
    for site in draws:
        assert found[site]["scale"] == sites[site]["scale"]
        assert found[site]["cond_indep_stack"] == sites[site]["cond_indep_stack"]
    # NumPyro's density must not be blind to the scale that is compared.
    assert found[name]["scale"] == GROUPS / SEEN * (factor or 1.0)


@pytest.mark.parametrize(
    ("guide", "kind"),
    [
        pytest.param(AutoNormal, "centred", marks=pytest.mark.slow),
        (AutoNormal, "non-centred"),
        (AutoDelta, "centred"),
    ],
)
def test_autoguides_have_the_loss_of_the_model_by_hand(guide, kind):
    losses, params = [], []
    for model in (by_hand(kind, 5.0), bound(kind, 5.0, ORDERS[1])):
        own = guide(model, create_plates=plate)
        svi = px.infer.CompiledSVI(model, own, numpyro.optim.Adam(0.01), Trace_ELBO())
        fit = svi.run(jax.random.key(0), 5, progress_bar=False)
        frames = own.prototype_trace
        name = SITE if kind == "centred" else f"{SITE}_decentered"
        assert [f.name for f in frames[name]["cond_indep_stack"]] == ["group"]
        losses.append(fit.losses)
        params.append(fit.params)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    for name, value in params[0].items():
        assert value.shape[0] == GROUPS
        np.testing.assert_allclose(params[1][name], value, rtol=1e-5)


def plate():
    return numpyro.plate("group", GROUPS, subsample_size=SEEN)


@pytest.mark.parametrize("inside", [False, True])
def test_learned_values_of_a_minibatch_are_those_of_the_model_by_hand(inside):
    def hand():
        stored = jnp.broadcast_to(linear.weight, (GROUPS, 1, 2))
        with plate():
            weight = numpyro.param(SITE, stored, event_dim=2)
        with numpyro.plate("seen", SEEN):
            observe(weight)

    def ours():
        block_and_plate = (px.learn(), plate())
        first, second = block_and_plate if inside else block_and_plate[::-1]
        with first, second:
            net = px.bind(linear, "slope", plate="group")
        with numpyro.plate("seen", SEEN):
            observe(net.weight)

    values = {SITE: jax.random.normal(jax.random.key(2), (GROUPS, 1, 2))}
    traces = []
    for model in (hand, ours):
        traces.append(trace(seed(substitute(model, values), 0)).get_trace())
    expected, found = (log_density(seed(m, 0), (), {}, values)[0] for m in (hand, ours))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    frames = [t[SITE]["cond_indep_stack"] for t in traces]
    assert frames[0] == frames[1]
