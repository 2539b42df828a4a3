"""What a handler says of a slip that people make."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import HANDLERS, H, Z, make_film, make_mlp, sites
from numpyro import handlers

import pyrox_ppl as px

NORMAL = dist.Normal(0.0, 1.0)
ROWS = jnp.ones((5, 2))


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: px.bayesianize(0.3),
            r"prior_std=, prior=, where=\), here prior_std=0\.3",
        ),
        (lambda: px.bayesianize(NORMAL), r"model that it decorates.*prior="),
        (lambda: px.bayesianize({"*": NORMAL}), r"model that it decorates.*prior="),
        (lambda: px.bayesianize("*.bias"), r"model that it decorates.*where="),
        (lambda: px.learn("*.bias"), r"model that it decorates.*where="),
        (lambda: px.learn(0.3), r"got 0\.3: pass everything else by keyword \(where="),
        (lambda: px.bayesianize(prior=dist.Normal), "class Normal"),
        (lambda: px.bayesianize(prior={"*": dist.Normal}), "class Normal for '\\*'"),
        (
            lambda: px.bayesianize(prior=lambda name, shape: NORMAL),
            r"p\.name, p\.shape",
        ),
        (
            lambda: px.bayesianize(prior={"*": lambda n, s: NORMAL}),
            r"p\.name, p\.shape",
        ),
        (
            lambda: px.bayesianize(where=lambda n, s: True),
            r"for where must take one arg",
        ),
        (lambda: px.learn(where=lambda: True), r"for where must take one arg"),
    ],
)
def test_an_argument_in_the_wrong_place_is_named_with_the_right_one(make, match):
    with pytest.raises(TypeError, match=match):
        make()


@pytest.mark.parametrize("first", [px.is_backbone, px.priors.hierarchical()])
@pytest.mark.parametrize("handler", [px.bayesianize, px.learn])
def test_a_callable_in_the_models_place_is_refused_in_a_with(handler, first):
    with pytest.raises(TypeError, match=r"would not run.*where="), handler(first):
        make_film()(H, Z)


def test_decorators_run_as_they_did():
    film = make_film()
    for model in (
        px.bayesianize(lambda: film(H, Z)),
        px.bayesianize(prior_std=2.0)(lambda: film(H, Z)),
        px.bayesianize(px.learn(lambda: film(H, Z), where="*.bias")),
    ):
        for _ in range(2):
            assert "affine_modulation.generator.weight" in sites(model)


@pytest.mark.parametrize("name", ["bayesianize", "learn"])
def test_a_forgotten_bind_is_said_with_the_line_to_write(name):
    def model():
        with HANDLERS[name]():
            make_mlp()(jnp.ones(2))

    with pytest.raises(ValueError, match="intercepted no parameter") as error:
        sites(model)
    assert "inside it. Read an unbound module" in str(error.value)
    assert '`net = px.bind(mlp, "net")`' in str(error.value)


@pytest.mark.parametrize("inner", HANDLERS)
def test_an_outer_block_says_who_took_its_parameters(inner):
    def model(where=None):
        with px.bayesianize(where=where), HANDLERS[inner]():
            make_film()(H, Z)

    label = inner.removesuffix("-laws")
    weight = "affine_modulation.generator.weight"
    for where, match in (
        (None, "intercepted no"),
        ("*.weight", "matches no parameter"),
    ):
        with pytest.raises(ValueError, match=match) as error:
            sites(model, where)
        assert f"A block further in took:\n  {weight} by {label}\n" in str(error.value)
        assert "No parameter was read" not in str(error.value)


def test_what_is_tied_is_listed_with_all_its_names():
    weight = jnp.ones(2)

    def model():
        with px.learn(where="net.c"):
            px.bind({"a": weight, "b": weight}, "net")

    with pytest.raises(ValueError, match=r"  net\.a \(2,\) generator = net\.b\n"):
        sites(model)


def notes(error):
    return "\n".join(getattr(error.value, "__notes__", ()))


@pytest.mark.parametrize("name", ["bayesianize", "learn"])
def test_a_forgotten_vmap_gets_a_note_once(name):
    def model():
        with (
            px.scope("a"),
            HANDLERS[name](where="*.weight"),
            HANDLERS[name](where="*.bias"),
        ):
            px.bind(make_mlp(), "net")(jnp.ones((5, 2)))

    with pytest.raises(TypeError, match="dot_general") as error:
        sites(model)
    assert notes(error).count("jax.vmap(net)(x)") == 1


def test_other_errors_get_no_note():
    with pytest.raises(TypeError) as error, px.learn():
        px.bind(make_mlp(), "net")(*ROWS)
    assert notes(error) == ""


def test_explain_notes_a_forgotten_vmap_after_the_block_and_missing_arguments():
    mlp = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))

    def model(x, y=None):
        with px.bayesianize():
            net = px.bind(mlp, "net")
        return net(x)

    with pytest.raises(TypeError, match="dot_general") as error:
        px.explain(model, ROWS)
    assert "jax.vmap(net)(x)" in notes(error)
    for args, kwargs in (((), {}), ((ROWS,), {"z": 1})):
        with pytest.raises(TypeError, match=r"explain\(model, x, \.\.\.\)"):
            px.explain(model, *args, **kwargs)

    def fails(x):
        raise TypeError("its own")

    with pytest.raises(TypeError, match=r"^its own"):
        px.explain(fails, ROWS)


def test_one_read_with_a_plate_and_one_without_are_told_apart():
    linear = eqx.nn.Linear(2, 1, key=jax.random.key(0))

    def model():
        with numpyro.plate("group", 3), px.bayesianize():
            px.bind(linear, "net", plate="group")
            px.bind(linear, "net")

    with pytest.raises(ValueError, match=r"with plate='group' and without a plate"):
        sites(model)


@pytest.mark.parametrize("part", [False, True])
def test_a_module_that_stayed_bound_is_named_with_the_way_to_an_unbound_one(
    part,
):
    film = make_film()
    first = sites(px.learn(lambda: film(H, Z)), types=("param",))
    values = {name: site["value"] + 1.0 for name, site in first.items()}
    with handlers.substitute(data=values), px.learn():
        kept = px.bind(film)
    trained = px.module_from_mean(film, {}, params=values)

    def model(film):
        return px.bind({"film": film}, "pair") if part else film(H, Z)

    with pytest.raises(
        ValueError, match=r"again: AffineModulation\. .*module_from_mean"
    ):
        sites(px.learn(model), kept)
    found = sites(px.learn(model), trained, types=("param",))
    assert len(found) == len(values) == 2
    for site, value in zip(found.values(), values.values(), strict=True):
        np.testing.assert_array_equal(site["value"], value)
