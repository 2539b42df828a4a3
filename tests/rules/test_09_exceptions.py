"""Rule 9: exceptions leave nothing behind."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from models import H, Z, make_film, sites

import pyrox_ppl as px
from pyrox_ppl._transform import inside_block


class OwnError(Exception):
    """An error of the user's."""


def raising_prior(parameter):
    if parameter.name.endswith("bias"):
        raise OwnError
    return dist.Normal(0.0, 1.0)


def fail_in_the_block():
    with px.bayesianize():
        make_film()(H, Z)
        raise OwnError


def fail_in_a_prior():
    with px.bayesianize(prior=raising_prior), numpyro.plate("inner", 3):
        make_film()(H, Z)


def fail_in_an_inner_block():
    with px.bayesianize(), px.scope("a"), px.bayesianize(where="*.bias"):
        make_film()(H, Z)
        raise OwnError


def fail_on_the_width():
    with px.bayesianize():
        make_film()(jnp.ones(7), Z)


def fail_in_a_generator():
    def generator(z):
        raise OwnError

    with px.bayesianize(), px.amortize(generator=generator, context=Z):
        make_film()(H, Z)


def fail_on_the_values():
    with px.scope("a"), px.amortize(generator=lambda z: {"b": z}, context=Z):
        make_film()(H, Z)


def fail_in_a_function_of_the_stored_array():
    def offset(stored):
        raise OwnError

    values = {"generator.bias": offset}
    with px.amortize(generator=lambda z: values, context=Z), px.scope("b"):
        make_film()(H, Z)


def fail_in_a_learn_block():
    with px.learn():
        make_film()(H, Z)
        raise OwnError


def fail_on_leaving():
    with px.bayesianize(where="nothing"):
        make_film()(H, Z)


MODELS = [
    fail_in_the_block,
    fail_in_a_prior,
    fail_in_an_inner_block,
    fail_on_the_width,
    fail_on_leaving,
    fail_in_a_generator,
    fail_on_the_values,
    fail_in_a_function_of_the_stored_array,
    fail_in_a_learn_block,
]


@pytest.mark.parametrize("model", MODELS)
def test_after_an_error_the_next_model_runs_clean(model):
    film = make_film()

    def clean():
        with px.bayesianize():
            film(H, Z)

    before = sites(clean)
    with pytest.raises((OwnError, ValueError)):
        sites(model)
    assert numpyro.primitives._PYRO_STACK == []
    assert inside_block.value is False
    after = sites(clean)
    assert before.keys() == after.keys()
    for name, site in before.items():
        assert jnp.array_equal(site["value"], after[name]["value"])


def test_the_users_error_is_not_replaced_by_ours():
    def model():
        with px.bayesianize(where="misspelt"):
            raise OwnError

    with pytest.raises(OwnError):
        sites(model)


def test_an_error_caught_between_two_blocks_leaves_the_outer_one_whole():
    film = make_film()

    def model():
        with px.bayesianize():
            film(H, Z)
            with pytest.raises(OwnError), px.bayesianize():
                raise OwnError
            film(H, Z)

    assert len(sites(model)) == 2


def test_a_handler_object_works_again_after_an_error():
    film = make_film()
    fail = [True]

    @px.bayesianize
    def model():
        film(H, Z)
        if fail:
            raise OwnError

    with pytest.raises(OwnError):
        sites(model)
    fail.clear()
    assert len(sites(model)) == 2


def test_an_amortize_object_works_again_after_an_error_of_its_generator():
    fail = [True]

    def generator(z):
        if fail:
            raise OwnError
        return {"generator.bias": jnp.ones(6)}

    @px.amortize(generator=generator, context=Z)
    def model():
        return make_film()(H, Z)

    with pytest.raises(OwnError):
        sites(model)
    fail.clear()
    assert model().shape == (3,)
