"""Modules back under priors that sample a parameter in another form, or beside it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.reparam import LocScaleReparam, TransformReparam

import pyrox_ppl as px

KEY = jax.random.key(0)
LINEAR = eqx.nn.Linear(2, 3, key=KEY)
X = jax.random.normal(KEY, (5, 2))


def doubled(parameter):
    base = dist.Normal(0.0, 1.0).expand(parameter.shape).to_event()
    return dist.TransformedDistribution(base, dist.transforms.AffineTransform(0.0, 2.0))


PRIORS = {
    "hierarchical": (px.priors.hierarchical(), {}),
    "horseshoe": (px.priors.horseshoe(), {}),
    "NonCentered": (lambda p: px.priors.NonCentered(dist.Normal(1.0, 2.0)), {}),
    "LocScaleReparam": (None, {"net.weight": LocScaleReparam(0.0)}),
    "TransformReparam": (doubled, {"net.weight": TransformReparam()}),
}


def model_of(prior, reparam):
    def model(x, y=None):
        with px.bayesianize(prior=prior):
            net = px.bind(LINEAR, "net")
        f = numpyro.deterministic("f", jax.vmap(net)(x))
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Normal(f, 1.0).to_event(1), obs=y)

    return handlers.reparam(model, config=reparam)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_parameter_itself_is_used(prior):
    model = model_of(*PRIORS[prior])
    drawn = Predictive(model, num_samples=9)(KEY, X)
    f = np.asarray(drawn["f"])
    y = drawn.pop("y")[0]
    tree = px.to_datatree(drawn, X, y=y, model=model)
    for draws in (drawn, tree):
        predicted = px.predict(LINEAR, draws, X, name="net")
        np.testing.assert_allclose(predicted.mean, f.mean(0), atol=1e-5)
        modules = px.modules_from_draws(LINEAR, draws, name="net")
        values = eqx.filter_vmap(lambda net: jax.vmap(net)(X))(modules)
        np.testing.assert_allclose(values, f, atol=1e-5)
        one = px.module_from_draw(LINEAR, draws, 2, name="net")
        np.testing.assert_allclose(jax.vmap(one)(X), f[2], atol=1e-5)
        mean = px.module_from_mean(LINEAR, draws, name="net")
        np.testing.assert_allclose(jax.vmap(mean)(X), f.mean(0), atol=1e-5)
    diagnosis = px.diagnose(tree, LINEAR, X, name="net", loo=False)
    np.testing.assert_allclose(diagnosis.functions.std, f.std(0).ravel(), atol=1e-5)
    # The weights are functions of what was sampled in name only.
    assert px.diagnose(tree, loo=False).functions.what == "the values of f"
    assert px.diagnose(tree, model, X, loo=False).functions.what == "the values of f"


def test_weights_are_no_functions_to_agree_on():
    # Two chains with the units in another order: only the weights differ.
    def model(x):
        with px.bayesianize(prior=px.priors.hierarchical()):
            px.bind(LINEAR, "net")

    drawn = Predictive(model, num_samples=100)(KEY, X)
    tree = px.to_datatree(drawn, X, model=model)
    assert [c.finding for c in px.diagnose(tree).checks] == [
        "there is no function to look at"
    ]
    with pytest.raises(ValueError, match="no deterministic site to look at"):
        px.diagnose(tree, model, X)


def test_members_of_a_plate_share_the_scale():
    def model(x):
        with (
            numpyro.plate("member", 3, dim=-2),
            px.bayesianize(prior=px.priors.hierarchical()),
        ):
            nets = px.bind(LINEAR, "net", plate="member")
        f = eqx.filter_vmap(lambda net: jax.vmap(net)(x))(nets)
        numpyro.deterministic("f", f)

    drawn = Predictive(model, num_samples=4)(KEY, X)
    modules = px.modules_from_draws(LINEAR, drawn, name="net")
    each = eqx.filter_vmap(eqx.filter_vmap(lambda net: jax.vmap(net)(X)))(modules)
    np.testing.assert_allclose(each, drawn["f"], atol=1e-5)


def test_what_a_parameter_is_made_from_is_not_the_parameter():
    drawn = Predictive(model_of(px.priors.hierarchical(), {}), num_samples=9)(KEY, X)
    halves = {n: v for n, v in drawn.items() if n != "net.weight"}
    with pytest.raises(ValueError, match=r"net\.weight_decentered.*Predictive"):
        px.predict(LINEAR, halves, X, name="net")


DRAWN = {"net.weight": jnp.ones((4, 3, 2)), "net.bias": jnp.ones((4, 3))}


def test_a_misspelt_parameter_is_no_other_site():
    misspelt = {"net.weigth": DRAWN["net.weight"], "net.bias": DRAWN["net.bias"]}
    deeper = DRAWN | {"net.head.weight": jnp.ones((4, 1, 3))}
    other = DRAWN | {"net.weights": jnp.ones((4, 5, 3))}
    for draws in (misspelt, deeper, other):
        with pytest.raises(
            ValueError, match=r"(?s)weig.*not its parameters.*leave them out"
        ):
            px.modules_from_draws(LINEAR, draws, name="net")


def test_a_tree_knows_which_sites_are_parameters():
    def model(x):
        with px.bayesianize(where="*.weight"):
            net = px.bind(LINEAR, "net")
        numpyro.deterministic("net.weight_norm", jnp.square(net.weight).sum())
        numpyro.deterministic("net.f", jax.vmap(net)(x))

    drawn = Predictive(model, num_samples=9)(KEY, X)
    tree = px.to_datatree(drawn, X, model=model)
    predicted = px.predict(LINEAR, tree, X, name="net")
    np.testing.assert_allclose(predicted.mean, drawn["net.f"].mean(0), atol=1e-5)
    narrow = eqx.nn.Linear(2, 3, use_bias=False, key=KEY)
    whole = Predictive(model_of(None, {}), num_samples=9)(KEY, X)
    y = whole.pop("y")[0]
    with_model = px.to_datatree(whole, X, y=y, model=model_of(None, {}))
    for draws in (whole, px.to_datatree(whole), with_model):
        with pytest.raises(ValueError, match=r"'net\.bias'\] are not its parameters"):
            px.predict(narrow, draws, X, name="net")
