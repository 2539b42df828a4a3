"""Rule 2: one parameter, one variable; two modules under one name raise."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from models import HANDLERS, SITE_TYPES, H, Z, make_film, make_mlp, run, sites

import pyrox_ppl as px
from pyrox_ppl.nn import FiLM


def test_two_calls_share_one_site_and_one_value():
    film = make_film()

    def model():
        with px.bayesianize():
            return film(H, Z), film(H, Z), film(H, 2 * Z)

    assert len(sites(model)) == 2
    first, second, third = run(model)
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, third)


def test_two_calls_inside_an_inner_trace_are_one_site_each():
    film = make_film()

    def model():
        with px.bayesianize(), numpyro.handlers.trace() as inner:
            film(H, Z)
            film(H, Z)
        return inner

    names = [name for name, site in run(model).items() if site["type"] == "sample"]
    assert len(names) == 2


def test_a_scope_inside_separates():
    film = make_film()

    def model():
        with px.bayesianize():
            with px.scope("left"):
                left = film(H, Z)
            with px.scope("right"):
                right = film(H, Z)
            with px.scope("left"):
                again = film(H, Z)
        return left, right, again

    assert len(sites(model)) == 4
    left, right, again = run(model)
    np.testing.assert_array_equal(left, again)
    assert not np.allclose(left, right)


def test_a_scope_outside_does_not_disturb():
    film = make_film()

    def model():
        with px.scope("outer"), px.bayesianize():
            return film(H, Z) - film(H, Z)

    assert sorted(sites(model)) == [
        "outer.affine_modulation.generator.bias",
        "outer.affine_modulation.generator.weight",
    ]
    np.testing.assert_array_equal(run(model), jnp.zeros(3))


@pytest.mark.parametrize("features", [3, 5])
def test_two_modules_under_one_name_raise_with_both_shapes_and_the_fix(features):
    one, two = make_film(), FiLM.init(features, 2, key=jax.random.key(7))

    def model():
        with px.bayesianize():
            one(H, Z)
            two(jnp.ones(features), Z)

    with pytest.raises(ValueError, match="same name") as error:
        sites(model)
    message = str(error.value)
    for part in (
        "affine_modulation.generator.weight",
        "(6, 2)",
        str((2 * features, 2)),
        "scope(name)",
        "bind(module, name)",
    ):
        assert part in message


def test_two_modules_under_two_names_are_two_sets():
    def model():
        with px.bayesianize():
            px.bind(make_mlp(0), "one")
            px.bind(make_mlp(1), "two")

    assert len(sites(model)) == 8


def test_a_module_bound_twice_by_hand_is_read_once():
    mlp = make_mlp()

    def model():
        with px.bayesianize():
            one, two = px.bind(mlp, "net"), px.bind(mlp, "net")
        return one.layers[0].weight, two.layers[0].weight

    assert len(sites(model)) == 4
    np.testing.assert_array_equal(*run(model))


def test_the_same_handler_object_runs_one_block_after_another():
    film = make_film()
    model = px.bayesianize(lambda: film(H, Z) - film(H, Z))
    for seed in range(2):
        assert len(sites(model, seed=seed)) == 2
        np.testing.assert_array_equal(run(model, seed=seed), jnp.zeros(3))


def test_a_handler_object_entered_twice_at_once_is_refused():
    handler = px.bayesianize()

    def model():
        with handler, handler:
            make_film()(H, Z)

    with pytest.raises(ValueError, match="already entered"):
        sites(model)


def test_a_second_read_is_answered_inside_and_does_not_reach_an_outer_handler():
    film, seen = make_film(), []

    def model():
        outer = px.bayesianize(where=lambda p: seen.append(p.name) or True)
        with outer, px.bayesianize(where="*.bias"):
            return film(H, Z) - film(H, Z)

    np.testing.assert_array_equal(run(model), jnp.zeros(3))
    assert seen == ["affine_modulation.generator.weight"] * 2
    assert len(sites(model)) == 2


@pytest.mark.parametrize("name", HANDLERS)
def test_two_calls_share_one_site_and_one_value_under_every_handler(name):
    film = make_film()

    def model():
        with HANDLERS[name]():
            return film(H, Z) - film(H, Z)

    np.testing.assert_array_equal(run(model), jnp.zeros(3))
    expected = 2 if name in SITE_TYPES else 0
    assert len(sites(model, types=("sample", "param"))) == expected


@pytest.mark.parametrize("name", HANDLERS)
def test_two_modules_under_one_name_raise_under_every_handler(name):
    def model():
        with HANDLERS[name]():
            make_film(0)(H, Z)
            make_film(1)(H, Z)

    with pytest.raises(ValueError, match="same name"):
        sites(model)


@pytest.mark.parametrize("name", ["amortize", "amortize-laws"])
def test_two_modules_of_one_generator_raise_and_one_of_them_is_chosen_by_where(name):
    def model(where):
        with HANDLERS[name](where=where):
            px.bind(make_film(0), "one")
            return px.bind(make_film(1), "two")

    with pytest.raises(ValueError, match=r"one target.*'one\.\*'"):
        run(model, None)
    kept = run(model, "one.*").generator.weight
    np.testing.assert_array_equal(kept, make_film(1).generator.weight)


def test_one_module_under_two_names_gets_the_generated_values_twice():
    film = make_film()

    def model():
        with HANDLERS["amortize"]():
            one, two = px.bind(film, "one"), px.bind(film, "two")
            with px.scope("left"):
                return one(H, Z), two(H, Z), film(H, Z)

    one, two, three = run(model)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("substituted", [False, True])
def test_a_site_at_the_stored_value_is_told_from_what_is_stored(substituted):
    mlp = make_mlp()
    data = {"one.layers.0.bias": mlp.layers[0].bias} if substituted else {}

    def model():
        handler = px.bayesianize() if substituted else px.learn()
        with handler, numpyro.handlers.trace() as inner:
            px.bind(mlp, "one")
            px.bind(mlp, "two")
        return inner

    found = run(numpyro.handlers.substitute(model, data))
    names = [n for n, s in found.items() if s["type"] in ("param", "sample")]
    assert len(names) == 8
