"""Rule 2 across blocks: one name is one variable, or raises with the way out."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from models import HANDLERS, SITE_TYPES, H, Z, make_film, run, sites
from numpyro import handlers
from numpyro.distributions import HalfNormal, Normal
from numpyro.infer import SVI, Predictive, Trace_ELBO

import pyrox_ppl as px
from pyrox_ppl.nn import FiLM

A, B = (eqx.nn.Linear(2, 2, key=jax.random.key(i)) for i in (0, 1))
WIDE = eqx.nn.Linear(3, 2, key=jax.random.key(2))
# At construction every FiLM holds the same values, in arrays of its own.
FILMS = [FiLM.init(3, 2, key=jax.random.key(i)) for i in (0, 1)]


def fit(model, guide, steps=3):
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    run = lambda key: svi.run(key, steps, progress_bar=False)  # noqa: E731 - jitted
    return jax.jit(run)(jax.random.key(0))  # one program instead of hundreds


def read(first, second, one=px.learn, two=px.learn):
    def model():
        with one():
            u = px.bind(first, "net")
        with two():
            v = px.bind(second, "net")
        return u, v

    return model


def nothing():
    pass


@pytest.mark.parametrize("pair", [(A, B), (A, WIDE), FILMS], ids=["a", "shape", "film"])
def test_learn_refuses_two_modules_of_one_name(pair):
    with pytest.raises(ValueError, match=r"two blocks.*bind\(module, name\)") as error:
        fit(read(*pair), nothing)
    assert "'net." in str(error.value)
    with pytest.raises(ValueError, match="becomes a site twice"):
        Predictive(read(*pair), num_samples=2)(jax.random.key(0))


def test_learn_shares_one_module_between_blocks():
    def model():
        u, v = read(A, A)()
        numpyro.factor("f", -jnp.square(u.weight - 1.0).sum())
        return u, v

    u, v = run(handlers.substitute(model, {"net.weight": jnp.ones((2, 2))}))
    np.testing.assert_array_equal(u.weight, v.weight)
    assert set(fit(model, nothing).params) == {"net.weight", "net.bias"}


@pytest.mark.parametrize("pair", [(A, B), (A, WIDE), FILMS], ids=["a", "shape", "film"])
def test_model_and_guide_with_two_modules_of_one_name_are_refused(pair):
    def model():
        with px.learn():
            px.bind(pair[0], "net")

    def guide():
        with px.learn():
            px.bind(pair[1], "net")

    with pytest.raises(ValueError, match="the guide and the model"):
        fit(model, guide)


def test_model_and_guide_may_learn_one_module():
    def one():
        with px.learn():
            px.bind(A, "net")

    assert set(fit(one, one).params) == {"net.weight", "net.bias"}


def test_scopes_tell_two_blocks_apart():
    def model():
        with px.scope("left"), px.learn():
            px.bind(A, "net")
        with px.scope("right"), px.learn():
            px.bind(B, "net")

    assert len(sites(model, types=("param",))) == 4

    def one_scope():
        with px.scope("left"):
            read(A, B)()

    with pytest.raises(ValueError, match=r"'left\.net\.weight' becomes a site twice"):
        sites(one_scope)


@pytest.mark.parametrize("second", SITE_TYPES)
@pytest.mark.parametrize("first", SITE_TYPES)
def test_one_module_in_two_blocks_raises_with_the_way_out(first, second):
    film = make_film()
    model = read(film, film, HANDLERS[first], HANDLERS[second])
    if first == second == "learn":
        assert len(sites(model, types=("param",))) == 2
        return
    with pytest.raises(ValueError, match=r"becomes a site twice.*read the module once"):
        sites(model)


def test_a_generated_array_is_no_site_and_may_be_read_in_two_blocks():
    film = make_film()
    u, v = run(read(film, film, HANDLERS["amortize"], HANDLERS["amortize"]))
    np.testing.assert_array_equal(u(H, Z), v(H, Z))


def test_a_site_by_hand_of_that_name_raises():
    def model():
        numpyro.sample("net.weight", Normal(0.0, 1.0))
        with px.bayesianize():
            px.bind(A, "net")

    with pytest.raises(ValueError, match=r"'net\.weight' becomes a site twice"):
        sites(model)


def test_what_block_hides_does_not_clash():
    def model():
        with handlers.block():
            run(read(A, A, px.bayesianize, px.bayesianize))
        with px.bayesianize():
            return px.bind(A, "net")

    assert len(sites(model)) == 2


def test_lift_shares_a_learned_module_between_blocks():
    prior = {"net.bias": HalfNormal(1.0).expand((2,)).to_event()}
    lifted = handlers.lift(read(A, A), prior=prior)
    assert sorted(sites(lifted, types=("sample", "param"))) == [
        "net.bias",
        "net.weight",
    ]
    u, v = run(lifted)
    np.testing.assert_array_equal(u.bias, v.bias)
