"""Rule 3: a tied array goes by the name of any of its places."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from models import make_film, run, sites

import pyrox_ppl as px
from pyrox_ppl.nn import SIREN, ConditionedINR, FiLM, HyperNetwork

KEYS = jax.random.split(jax.random.key(0))
ENC = eqx.nn.Linear(2, 3, key=KEYS[0])
DEC = eqx.tree_at(lambda d: d.weight, eqx.nn.Linear(2, 3, key=KEYS[1]), ENC.weight)
TIED = {"dec": DEC, "a_enc": ENC}  # the site is a_enc.weight: keys are sorted
WIDE, NARROW = dist.Normal(0.0, 9.0), dist.Normal(0.0, 0.1)


def bind(handler, scope=None):
    def model():
        with handler:
            if scope is None:
                return px.bind(TIED, "net")
            with px.scope(scope):
                return px.bind(TIED, "net")

    return model


def scales(prior):
    found = sites(bind(px.bayesianize(prior=prior)))
    return {n: round(float(s["fn"].variance.max()) ** 0.5, 4) for n, s in found.items()}


@pytest.mark.parametrize("handler", [px.bayesianize, px.learn])
@pytest.mark.parametrize("place", ["dec", "a_enc"])
def test_where_selects_it_by_each_of_its_names(handler, place):
    model = bind(handler(where=f"net.{place}.*"))
    names = sorted(sites(model, types=("sample", "param")))
    assert names == sorted(["net.a_enc.weight", f"net.{place}.bias"])
    bound = run(model)
    assert bound["dec"].weight is bound["a_enc"].weight


def test_where_has_the_prefix_of_a_scope_at_each_of_its_names():
    model = bind(px.bayesianize(where="left.net.dec.weight"), "left")
    assert list(sites(model)) == ["left.net.a_enc.weight"]


def test_a_predicate_sees_all_its_names():
    seen = {}
    where = lambda p: seen.update({p.name: (p.names, p.paths)}) or True  # noqa: E731 - a predicate of one line
    sites(bind(px.bayesianize(where=where), "left"))
    assert seen["left.net.a_enc.weight"] == (
        ("left.net.a_enc.weight", "left.net.dec.weight"),
        ("a_enc.weight", "dec.weight"),
    )
    assert seen["left.net.dec.bias"] == (("left.net.dec.bias",), ("dec.bias",))


def test_the_first_prior_key_that_matches_one_of_its_names_wins():
    enc, dec = "net.a_enc.*", "net.dec.*"
    assert scales({dec: WIDE, "*": NARROW})["net.a_enc.weight"] == 9.0
    assert scales({dec: WIDE, enc: NARROW})["net.a_enc.weight"] == 9.0
    found = scales({enc: NARROW, dec: WIDE})
    assert found == {
        "net.a_enc.weight": 0.1,
        "net.a_enc.bias": 0.1,
        "net.dec.bias": 9.0,
    }
    with pytest.raises(ValueError, match=r"net\.dec\.weight.*put it first"):
        scales({"net.a_enc.*": NARROW, "net.dec.weight": WIDE, "*": NARROW})


def test_it_is_a_generator_if_it_is_one_anywhere():
    inner = SIREN.init(2, 6, 1, depth=2, key=KEYS[0])
    field = ConditionedINR.init(inner, conditioner_cls=FiLM, cond_dim=2, key=KEYS[1])
    weight = field.conditioners[0].generator.weight

    def model(tree, where):
        with px.bayesianize(where=where):
            return px.bind(tree, "t")

    for spare, first in (
        ("a_spare", "t.a_spare"),
        (
            "spare",
            "t.field.conditioners.0.generator.weight",
        ),
    ):
        tree = {spare: weight, "field": field}
        assert first in sites(model, tree, None)
        assert first not in sites(model, tree, px.is_backbone)


@pytest.mark.parametrize("key", ["dec.weight", "a_enc.weight"])
def test_a_generator_gives_it_a_value_by_either_path(key):
    value = jnp.full((3, 2), 5.0)
    bound = run(bind(px.amortize(generator=lambda z: {key: value}, context=0.0)))
    np.testing.assert_array_equal(bound["dec"].weight, value)
    assert bound["dec"].weight is bound["a_enc"].weight
    np.testing.assert_array_equal(bound["dec"].bias, DEC.bias)


@pytest.mark.parametrize("law", [lambda v: v, lambda v: dist.Normal(v, 0.1)])
def test_one_value_by_both_paths_is_one_and_two_values_are_refused(law):
    value = law(jnp.full((3, 2), 5.0))
    both = {"dec.weight": value, "a_enc.weight": value}
    bound = run(bind(px.amortize(generator=lambda z: both, context=0.0)))
    assert bound["dec"].weight is bound["a_enc"].weight
    np.testing.assert_allclose(bound["dec"].weight, np.full((3, 2), 5.0), atol=1.0)
    two = {**both, "dec.weight": law(jnp.zeros((3, 2)))}
    with pytest.raises(ValueError, match=r"several values for 'net\.a_enc\.weight'"):
        run(bind(px.amortize(generator=lambda z: two, context=0.0)))


def test_a_network_for_the_untied_target_is_refused():
    untied = {"dec": DEC, "a_enc": eqx.nn.Linear(2, 3, key=KEYS[1])}
    generator = HyperNetwork.init(untied, 1, key=KEYS[0])
    with pytest.raises(ValueError, match="one array stored at"):
        run(bind(px.amortize(generator=generator, context=jnp.ones(1))))


def test_an_explicit_tie_is_one_site_also_under_jit():
    shared = eqx.nn.Shared(TIED, lambda t: t["dec"].weight, lambda t: t["a_enc"].weight)
    names = []

    def call(module):
        def model():
            with px.bayesianize():
                return px.bind(module, "net")().copy()

        names.extend(sites(model))
        return run(model)

    both = eqx.filter_jit(call)(shared)
    assert len(names) == 3
    np.testing.assert_array_equal(both["dec"].weight, both["a_enc"].weight)


def test_an_array_inside_a_bound_film_has_one_name():
    with px.bayesianize(where=lambda p: len(p.names) == 1):
        model = lambda: px.bind(make_film(), "film")  # noqa: E731 - a predicate of one line
        assert len(sites(model)) == 2
