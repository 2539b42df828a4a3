"""Rule 1: names come from tree paths, joined by dots."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import (
    BIAS,
    HANDLERS,
    SITE_TYPES,
    WEIGHT,
    H,
    Z,
    make_field,
    make_film,
    make_mlp,
    sites,
)

import pyrox_ppl as px
from pyrox_ppl._parameter import class_name
from pyrox_ppl.nn import HyperNetwork

FIELD_SITES = [
    f"conditioned_inr.conditioners.{layer}.generator.{leaf}"
    for layer in range(3)
    for leaf in ("weight", "bias")
]


def field_model(field):
    with px.bayesianize():
        field(jnp.ones(2), Z)


def test_a_name_is_the_class_in_snake_case_and_the_path():
    assert list(sites(field_model, make_field())) == FIELD_SITES


def test_the_root_is_the_name_given_to_bind():
    def model():
        with px.bayesianize():
            px.bind(make_mlp(), "head.north")

    assert list(sites(model)) == [
        "head.north.layers.0.weight",
        "head.north.layers.0.bias",
        "head.north.layers.1.weight",
        "head.north.layers.1.bias",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ConditionedINR", "conditioned_inr"),
        ("SIREN", "siren"),
        ("HyperSIREN", "hyper_siren"),
        ("RBFFourierFeatures", "rbf_fourier_features"),
        ("MLP", "mlp"),
        ("Conv2d", "conv2d"),
        ("_Net", "net"),
    ],
)
def test_class_names_become_snake_case(name, expected):
    assert class_name(type(name, (), {})()) == expected


def test_names_are_equal_in_two_processes():
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from models import make_field, sites\n"
        "import jax.numpy as jnp, pyrox_ppl as px\n"
        "def model():\n"
        "    with px.bayesianize(): make_field()(jnp.ones(2), jnp.ones(2))\n"
        "print(*sites(model))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == FIELD_SITES


@pytest.mark.parametrize(
    "copy",
    [
        lambda field: jax.tree.map(lambda x: 2.0 * x, field),
        lambda field: eqx.tree_at(
            lambda f: f.inner.layers[0].weight, field, jnp.zeros((4, 2))
        ),
        lambda field: eqx.filter_jit(lambda f: f)(field),
    ],
    ids=["tree_map", "tree_at", "filter_jit"],
)
def test_names_are_equal_after(copy):
    assert list(sites(field_model, copy(make_field()))) == FIELD_SITES


def test_names_are_equal_when_the_model_is_jitted_with_the_module_as_argument():
    names = []

    @eqx.filter_jit
    def jitted(field):
        names.extend(sites(field_model, field))

    jitted(make_field())
    assert names == FIELD_SITES


def test_a_slash_in_a_dictionary_key_becomes_a_dot():
    tree = {"a/b": jnp.ones(2), "c": [jnp.ones(1)]}

    def model():
        with px.bayesianize():
            px.bind(tree, "tree")

    assert list(sites(model)) == ["tree.a.b", "tree.c.0"]


def test_two_paths_of_one_name_are_refused():
    tree = {"a.b": jnp.ones(2), "a": {"b": jnp.ones(1)}}
    with numpyro.handlers.seed(rng_seed=0), pytest.raises(ValueError, match=r"t\.a\.b"):
        px.bind(tree, "t")


@given(st.text(max_size=5), st.text(max_size=5))
def test_a_slash_or_nothing_is_refused_as_a_name(before, after):
    for name in (f"{before}/{after}", ""):
        with pytest.raises(ValueError, match="must not"):
            px.bind(make_film(), name)
        with pytest.raises(ValueError, match="must not"):
            px.scope(name)


@pytest.mark.wrong_types
def test_a_name_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match="string"):
        px.bind(make_film(), 3)


def test_paths_and_fan_in_are_on_the_parameter():
    seen = []

    def model():
        with px.bayesianize(where=lambda p: seen.append(p) or True):
            px.bind(eqx.nn.Conv2d(3, 5, 2, key=jax.random.key(0)), "conv")
            make_film()(H, Z)

    sites(model)
    assert [(p.path, p.fan_in) for p in seen] == [
        (("weight",), 12),
        (("bias",), 12),
        (("generator", "weight"), 2),
        (("generator", "bias"), 2),
    ]
    assert [p.shape for p in seen] == [(5, 3, 2, 2), (5, 1, 1), (6, 2), (6,)]


@pytest.mark.parametrize("name", HANDLERS)
def test_the_name_of_a_site_is_the_same_whatever_the_handler(name):
    def model():
        with px.scope("outer"), HANDLERS[name]():
            make_film()(H, Z)

    found = sites(model, types=("sample", "param"))
    expected = [f"outer.{leaf}" for leaf in (WEIGHT, BIAS)]
    assert list(found) == (expected if name in SITE_TYPES else [])
    assert {site["type"] for site in found.values()} <= {SITE_TYPES.get(name)}


def test_the_names_of_a_generator_are_under_the_scopes_outside_its_block():
    generator = HyperNetwork.init(make_film(), 2, key=jax.random.key(0))

    def model():
        with (
            px.bayesianize(),
            px.scope("outer"),
            px.amortize(generator=generator, context=Z),
            px.scope("inner"),
        ):
            make_film()(H, Z)

    assert list(sites(model)) == [
        f"outer.hyper_network.heads.generator.{leaf}.{half}"
        for leaf in ("bias", "weight")
        for half in ("weight", "bias")
    ]


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap, jax.grad])
def test_a_bare_array_has_the_same_name_in_every_transform(transform):
    names = []

    def density(array):
        with px.bayesianize():
            px.bind(array)
        return array.sum()

    def run(array):
        names.extend(sites(density, array))
        return array.sum()

    transform(run)(jnp.ones(()) if transform is jax.grad else jnp.ones(2))
    assert names == ["array"]
