"""The scale of a normalisation layer has a prior around one, its shift around zero."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import run, sites

import pyrox_ppl as px
from pyrox_ppl import priors

KEY = jax.random.key(0)
LAYERS = {
    "LayerNorm": lambda: eqx.nn.LayerNorm((2, 4)),
    "RMSNorm": lambda: eqx.nn.RMSNorm(4),
    "GroupNorm": lambda: eqx.nn.GroupNorm(2, 4),
    "BatchNorm-batch": lambda: eqx.nn.BatchNorm(4, "rows", mode="batch"),
    "BatchNorm-ema": lambda: eqx.nn.BatchNorm(4, "rows", mode="ema"),
}
# What each rule says of one number that multiplies one number: fan-in 1, fan-out 1.
RULES = {
    "fan_in": (priors.fan_in(0.3), lambda at: dist.Normal(at, 0.3)),
    "glorot": (priors.glorot(0.3), lambda at: dist.Normal(at, 0.3)),
    "kaiming": (priors.kaiming(2.0), lambda at: dist.Normal(at, 0.4**0.5)),
    "laplace": (priors.laplace(0.3), lambda at: dist.Laplace(at, 0.3)),
    "student_t": (priors.student_t(5.0, 0.3), lambda at: dist.StudentT(5.0, at, 0.3)),
}


def bound(module, rule):
    def model():
        with px.bayesianize(prior=rule):
            return px.bind(module, "net")

    return model


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_density_is_that_by_hand(layer, rule):
    module, (ours, by_hand) = LAYERS[layer](), RULES[rule]
    found = sites(bound((module, eqx.nn.Linear(4, 4, key=KEY)), ours))
    for name, at in (("net.0.weight", 1.0), ("net.0.bias", 0.0)):
        value, theirs = found[name]["value"], by_hand(at)
        np.testing.assert_allclose(
            found[name]["fn"].log_prob(value), theirs.log_prob(value).sum(), rtol=1e-5
        )
    assert float(jnp.abs(found["net.1.weight"]["fn"].mean).max()) == 0.0


@pytest.mark.parametrize("layer", LAYERS)
def test_a_learned_scale_is_around_one_as_well(layer):
    found = sites(
        bound(LAYERS[layer](), priors.hierarchical()),
        types=("sample", "deterministic"),
    )
    for leaf, at in (("weight", 1.0), ("bias", 0.0)):
        values = [found[f"net.{leaf}{part}"]["value"] for part in ("", "_decentered")]
        by_hand = at + found[f"net.{leaf}.scale"]["value"] * values[1]
        np.testing.assert_allclose(values[0], by_hand, rtol=1e-6)


class Scaled(eqx.nn.RMSNorm):
    """A layer of the user's that inherits what it does."""


class Own(eqx.Module):
    """A layer of the user's that the package knows nothing of."""

    weight: jax.Array


def means(module, rule=None):
    rule = priors.fan_in() if rule is None else rule
    found = sites(bound(module, rule), types=("sample", "deterministic"))
    return {
        name: float(site["fn"].mean.mean())
        for name, site in found.items()
        if site["type"] == "sample"
    }


def test_the_class_of_the_layer_decides_and_not_a_name_or_a_shape():
    module = {
        "norm": eqx.nn.Linear(1, 4, key=KEY),
        "own": Own(jnp.ones(4)),
        "scaled": Scaled(4, use_bias=False),
        "attention": eqx.nn.MultiheadAttention(2, 4, key=KEY),
        "weighted": eqx.nn.WeightNorm(eqx.nn.Linear(2, 3, key=KEY)),
        "off": eqx.nn.LayerNorm(4, use_weight=False),
    }
    found = means(module)
    assert [name for name, mean in found.items() if mean] == ["net.scaled.weight"]
    named = {"*.own.weight": dist.Normal(1.0, 0.1), "*": priors.fan_in()}
    assert means(module, named)["net.own.weight"] == pytest.approx(1.0)


def test_a_tied_array_is_a_scale_wherever_the_layer_is():
    norm = eqx.nn.LayerNorm(4, use_bias=False)
    for module in (
        {"a": norm, "b": norm},
        {"a": norm.weight, "b": norm},
        {"a": norm, "b": norm.weight},
    ):
        assert list(means(module).values()) == [1.0]


@pytest.mark.rank_promotion
@pytest.mark.parametrize("rule", ["centred", "non-centred", "hierarchical"])
def test_members_of_a_plate_have_scales_around_one(rule):
    rule = {
        "centred": priors.fan_in(1e-3),
        "non-centred": lambda p: priors.NonCentered(priors.fan_in(1e-3)(p)),
        "hierarchical": priors.hierarchical(dist.Uniform(0.0, 1e-3)),
    }[rule]

    def model():
        with px.bayesianize(prior=rule), numpyro.plate("member", 5):
            return px.bind(eqx.nn.LayerNorm(3), "net", plate="member")

    net = run(model)
    assert net.weight.shape == (5, 3)
    np.testing.assert_allclose(net.weight, 1.0, atol=0.01)
    np.testing.assert_allclose(net.bias, 0.0, atol=0.01)
    assert len(np.unique(net.weight)) == 15


def test_a_network_keeps_its_size_under_the_prior():
    """Around zero, three layers in a row would shrink what goes through them."""
    norms = [eqx.nn.LayerNorm(64) for _ in range(3)]

    def model(x):
        net = px.bind(norms, "net")
        for norm in net:
            x = norm(x)
        return x

    x = jax.random.normal(KEY, (64,))
    out = run(px.bayesianize(model, prior=priors.fan_in(0.1)), x)
    assert np.corrcoef(x, out)[0, 1] > 0.9
