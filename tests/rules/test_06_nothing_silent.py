"""Rule 6: nothing silent: what has no effect raises, with the names that were read."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from models import H, Z, make_field, make_film, make_mlp, run, sites

import pyrox_ppl as px

NORMAL = dist.Normal(0.0, 1.0)
NAMES = (
    "affine_modulation.generator.weight (6, 2)",
    "affine_modulation.generator.bias (6,)",
)


def film_model(**kwargs):
    def model():
        with px.bayesianize(**kwargs):
            make_film()(H, Z)

    return model


@pytest.mark.parametrize(
    "kwargs",
    [
        {"where": "*.generatr.*"},
        {"where": ["*.bias", "*.wieght"]},
        {"where": "film.*"},
        {"prior": {"*.weigth": NORMAL, "*": NORMAL}},
        {"prior": {"*.weight": NORMAL, "*.bias": NORMAL, "*.scale": NORMAL}},
    ],
)
def test_a_misspelt_key_raises_with_the_names(kwargs):
    with pytest.raises(ValueError, match="matches no parameter") as error:
        sites(film_model(**kwargs))
    for name in NAMES:
        assert name in str(error.value)


def test_a_parameter_without_a_prior_raises_with_the_names():
    for prior in ({"*.weight": NORMAL}, lambda p: NORMAL if p.fan_in > 9 else None):
        with pytest.raises(ValueError, match="got no prior") as error:
            sites(film_model(prior=prior))
        assert NAMES[0] in str(error.value)


def test_a_prior_key_on_parameters_that_are_not_selected_raises():
    def model():
        with px.bayesianize(prior={"*.inner.*": NORMAL, "*": NORMAL}):
            make_field()(jnp.ones(2), Z)

    with pytest.raises(ValueError, match="not selected"):
        sites(model)


def test_a_prior_key_that_others_shadow_raises():
    with pytest.raises(ValueError, match="put it first"):
        sites(film_model(prior={"*.generator.*": NORMAL, "*.bias": NORMAL}))


def test_the_fallback_may_stand_anywhere_and_stay_unused():
    wide, narrow = dist.Normal(0.0, 5.0), dist.Normal(0.0, 0.1)
    found = sites(film_model(prior={"*": wide, "*.bias": narrow}))
    scales = {n: float(s["fn"].variance.max()) ** 0.5 for n, s in found.items()}
    assert scales["affine_modulation.generator.bias"] == pytest.approx(0.1)
    assert scales["affine_modulation.generator.weight"] == 5.0
    sites(film_model(prior={"*": wide, "*.bias": narrow, "*.weight": narrow}))


def test_a_block_around_nothing_raises():
    def model():
        with px.bayesianize():
            pass

    with pytest.raises(ValueError, match=r"intercepted no parameter.*No parameter was"):
        sites(model)


def test_a_plain_module_that_was_not_bound_raises():
    def model():
        with px.bayesianize():
            make_mlp()(jnp.ones(2))

    with pytest.raises(ValueError, match=r"bind\(module, name\)"):
        sites(model)


def test_a_module_bound_before_the_block_raises():
    def model():
        net = px.bind(make_film())
        with px.bayesianize():
            net(H, Z)

    with pytest.raises(ValueError, match="intercepted no parameter"):
        sites(model)


def test_a_block_whose_parameters_an_inner_block_takes_raises():
    def model():
        with px.bayesianize(prior_std=3.0), px.bayesianize(prior_std=0.1):
            make_film()(H, Z)

    with pytest.raises(ValueError, match="intercepted no parameter"):
        sites(model)


def test_the_innermost_handler_that_selects_decides_and_the_rest_passes_on():
    def model():
        with (
            px.bayesianize(prior_std=3.0),
            px.bayesianize(prior_std=0.1, where="*.bias"),
        ):
            make_film()(H, Z)

    found = sites(model)
    scales = {n: float(s["fn"].variance.max()) ** 0.5 for n, s in found.items()}
    assert scales == {
        "affine_modulation.generator.weight": 3.0,
        "affine_modulation.generator.bias": pytest.approx(0.1),
    }


def test_a_substituted_value_of_another_shape_raises():
    data = {"affine_modulation.generator.bias": jnp.zeros(1)}
    model = numpyro.handlers.substitute(film_model(), data)
    with pytest.raises(ValueError, match=r"shape \(1,\).*shape \(6,\)"):
        sites(model)


def test_a_site_that_nothing_can_draw_raises_and_says_what_to_do():
    with pytest.raises(ValueError, match="seed"):
        film_model()()


def test_a_complex_parameter_is_refused_when_it_is_selected():
    tree = {"w": jnp.ones(2), "c": jnp.ones(2, jnp.complex64)}

    def model(where):
        with px.bayesianize(where=where):
            return px.bind(tree, "t")["c"]

    with pytest.raises(TypeError, match=r"'t\.c' is complex"):
        run(model, None)
    assert run(model, "t.w").dtype == jnp.complex64


def test_integers_keys_and_functions_are_constants():
    tree = {"n": jnp.arange(2), "k": jax.random.key(0), "f": jnp.sin, "w": jnp.ones(1)}

    def model():
        with px.bayesianize(where="*"):
            px.bind(tree, "t")

    assert list(sites(model)) == ["t.w"]
