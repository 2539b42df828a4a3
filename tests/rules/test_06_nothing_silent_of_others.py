"""Rule 6, of learn and amortize: nothing silent."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from models import (
    BIAS,
    HANDLERS,
    SITE_TYPES,
    WEIGHT,
    H,
    Z,
    film_values,
    make_film,
    make_mlp,
    run,
    sites,
)

import pyrox_ppl as px
from pyrox_ppl.nn import HyperNetwork

NORMAL = dist.Normal(0.0, 1.0)
FIRST = {"generator.weight": jnp.ones((6, 2))}


def amortized(values, where=None, module=None):
    def model():
        with px.amortize(generator=lambda z: values, context=Z, where=where):
            return px.bind(make_film() if module is None else module, "net")

    return model


@pytest.mark.parametrize("name", ["learn", "amortize", "amortize-laws"])
@pytest.mark.parametrize("where", ["*.generatr.*", ["*.bias", "*.wieght"], "film.*"])
def test_a_misspelt_glob_raises_with_the_names(name, where):
    def model():
        with HANDLERS[name](where=where):
            make_film()(H, Z)

    with pytest.raises(ValueError, match="matches no parameter") as error:
        run(model)
    for parameter in (f"{WEIGHT} (6, 2)", f"{BIAS} (6,)"):
        assert parameter in str(error.value)


def test_a_learn_block_around_nothing_raises():
    def model():
        with px.learn():
            make_mlp()(jnp.ones(2))

    with pytest.raises(ValueError, match=r"learn block intercepted no.*No parameter"):
        run(model)


def test_an_amortize_block_around_nothing_raises_with_what_was_generated():
    def model():
        with HANDLERS["amortize"]():
            make_mlp()(jnp.ones(2))

    with pytest.raises(
        ValueError, match=r"generated values:\n  generator\.weight \(6, 2\)"
    ):
        run(model)


@pytest.mark.parametrize(
    ("values", "where", "match"),
    [
        (FIRST | {"generator.scale": jnp.ones(2)}, None, r"\['generator\.scale'\]"),
        ({"weight": jnp.ones((6, 2))}, None, r"\['weight'\].*read no such"),
        ({"generator.weight": jnp.ones((2, 6))}, None, r"\(2, 6\).*shape \(6, 2\)"),
        ({"generator.weight": jnp.ones((5, 6, 2))}, None, "several contexts"),
        ({"generator.weight": NORMAL.expand((2,))}, "*.bias", "has no value for"),
        (FIRST, "*.bias", r"selects 'net\.generator\.bias'.* no value for"),
        ({"generator.bias": dist.Normal(jnp.zeros(7))}, None, "does not broadcast"),
        ({"generator.bias": dist.Poisson(1.0)}, None, "discrete"),
    ],
)
def test_a_generator_for_another_target_raises_with_what_it_has(values, where, match):
    with pytest.raises(ValueError, match=f"(?s){match}") as error:
        run(amortized(values, where))
    if "distribut" not in str(error.value):
        for name, value in values.items():
            assert f"  {name} " in str(error.value)
            assert isinstance(value, dist.Distribution) or str(value.shape)
        assert "  net.generator.weight (6, 2)" in str(error.value)


@pytest.mark.parametrize("module", [eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(0)), 0])
def test_a_hypernetwork_for_another_target_raises(module):
    module = make_film() if module == 0 else module
    generator = HyperNetwork.init(make_mlp(), 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"layers\.0\.weight \(4, 2\)"):
        run(amortized(generator(Z), module=module))
    with pytest.raises(ValueError, match=f"another target.*{type(module).__name__}"):
        generator.generate(module, Z)


@pytest.mark.wrong_types
@pytest.mark.parametrize("returned", [jnp.ones(2), {}, {0: jnp.ones(2)}, None])
def test_what_is_no_mapping_from_names_is_no_generator(returned):
    with pytest.raises(TypeError, match="must return a mapping"):
        run(amortized(returned))


@pytest.mark.wrong_types
def test_what_cannot_be_called_is_no_generator():
    with pytest.raises(TypeError, match="generator must be a function"):
        px.amortize(generator={"generator.bias": jnp.ones(6)}, context=Z)


def test_a_value_that_is_left_out_by_where_stays_the_stored_one():
    film = make_film()
    bound = run(amortized(film_values(Z), "*.bias", film))
    assert jnp.array_equal(bound.generator.bias, film_values(Z)["generator.bias"])
    assert jnp.array_equal(bound.generator.weight, film.generator.weight)


def test_a_value_whose_parameter_an_inner_handler_takes_raises():
    def model():
        with HANDLERS["amortize"](), px.learn(where="*.bias"):
            make_film()(H, Z)

    with pytest.raises(ValueError, match=r"(?s)\['generator\.bias'\].*further in"):
        run(model)


@pytest.mark.parametrize("name", SITE_TYPES)
def test_outside_a_model_learn_gives_the_stored_value_and_a_sample_raises(name):
    film = make_film()

    def model():
        with HANDLERS[name]():
            return film(H, Z)

    if name == "learn":
        assert jnp.array_equal(model(), film(H, Z))
    else:
        with pytest.raises(ValueError, match="seed"):
            model()


def test_a_generated_array_needs_no_model():
    with HANDLERS["amortize"]():
        assert make_film()(H, Z).shape == (3,)


def test_a_complex_parameter_is_refused_by_learn():
    tree = {"w": jnp.ones(2), "c": jnp.ones(2, jnp.complex64)}
    with px.learn(), pytest.raises(TypeError, match=r"'t\.c' is complex.*imaginary"):
        px.bind(tree, "t")
    with px.learn(where="t.w"):
        assert px.bind(tree, "t")["c"].dtype == jnp.complex64


def test_sgd_on_a_complex_parameter_climbs_in_the_imaginary_part():
    """Why learn refuses it: NumPyro's optimisers do not conjugate the gradient."""
    optimiser = numpyro.optim.SGD(0.1)
    state = optimiser.init(jnp.array(1 + 1j, jnp.complex64))
    for _ in range(10):
        at = optimiser.get_params(state)
        state = optimiser.update(jax.grad(lambda c: jnp.abs(c - 2j) ** 2)(at), state)
    assert optimiser.get_params(state).imag < 0


def test_a_complex_value_for_a_real_parameter_is_refused():
    values = {"generator.bias": jnp.ones(6, jnp.complex64)}
    with pytest.raises(TypeError, match="complex, but the parameter is float32"):
        run(amortized(values))
    tree = {"c": jnp.ones(2, jnp.complex64)}
    with px.amortize(generator=lambda z: {"c": 2j * jnp.ones(2)}, context=Z):
        assert jnp.array_equal(px.bind(tree, "t")["c"], 2j * jnp.ones(2))


def test_a_prior_of_lift_must_have_the_shape_of_the_param():
    def model():
        with px.learn():
            return make_film()(H, Z)

    lifted = numpyro.handlers.lift(model, prior=NORMAL)
    with pytest.raises(ValueError, match=r"shape \(\).*lift"):
        sites(lifted)
