"""Rule 5: parameters are global; per-group parameters are asked for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import (
    HANDLERS,
    SITE_TYPES,
    H,
    Z,
    film_laws,
    film_values,
    make_film,
    make_mlp,
    run,
    sites,
)

import pyrox_ppl as px


def test_a_plate_around_or_inside_the_block_does_not_multiply_the_parameters():
    film = make_film()

    def outside():
        with numpyro.plate("data", 7, subsample_size=2), px.bayesianize():
            film(H, Z)

    def inside():
        with px.bayesianize(), numpyro.plate("data", 7, subsample_size=2):
            film(H, Z)

    for model in (outside, inside):
        found = sites(model)
        assert [site["value"].shape for site in found.values()] == [(6, 2), (6,)]
        assert all(site["cond_indep_stack"] == [] for site in found.values())
        assert all(site["scale"] is None for site in found.values())


@pytest.mark.parametrize("dim", [None, -2])
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_bind_with_a_plate_gives_a_set_per_member(place, dim):
    film = make_film()

    def model():
        group = numpyro.plate("group", 4, dim=dim)
        other = numpyro.plate("other", 5, dim=-3)
        if place == "outside":
            with other, group, px.bayesianize():
                return px.bind(film, "film", plate="group")
        with px.bayesianize(), other, group:
            return px.bind(film, "film", plate="group")

    found = sites(model)
    lead = (4,) if dim is None else (4, 1)
    assert found["film.generator.weight"]["value"].shape == (*lead, 6, 2)
    for site in found.values():
        assert [frame.name for frame in site["cond_indep_stack"]] == ["group"]
        assert site["fn"].batch_shape == lead
    bound = run(model)
    assert bound.generator.weight.shape == (4, 6, 2)
    assert len(np.unique(np.asarray(bound.generator.weight))) == 4 * 12
    out = eqx.filter_vmap(lambda member, h, z: member(h, z), in_axes=(0, None, None))(
        bound, H, Z
    )
    assert out.shape == (4, 3)


def test_leaves_that_are_not_selected_are_broadcast():
    mlp = make_mlp()

    def model():
        with px.bayesianize(where="*.layers.1.*"), numpyro.plate("group", 3):
            return px.bind(mlp, "head", plate="group")

    bound = run(model)
    np.testing.assert_array_equal(
        bound.layers[0].weight, np.broadcast_to(mlp.layers[0].weight, (3, 4, 2))
    )
    assert bound.layers[1].weight.shape == (3, 1, 4)
    assert eqx.filter_vmap(lambda net: net(jnp.ones(2)))(bound).shape == (3, 1)


def test_a_plate_without_any_handler_broadcasts_every_array():
    with numpyro.plate("group", 3):
        bound = px.bind(
            {"w": jnp.ones(2), "n": jnp.arange(2), "f": abs}, "t", plate="group"
        )
    assert bound["w"].shape == bound["n"].shape == (3, 2)
    assert bound["f"] is abs


def test_members_of_a_group_are_independent_in_density():
    linear = eqx.nn.Linear(1, 1, use_bias=False, key=jax.random.key(0))

    def model():
        with px.bayesianize(prior_std=2.0), numpyro.plate("group", 3):
            px.bind(linear, "slope", plate="group")

    value = jnp.array([0.1, -1.0, 2.0]).reshape(3, 1, 1)
    logp, _ = numpyro.infer.util.log_density(model, (), {}, {"slope.weight": value})
    assert logp == pytest.approx(float(dist.Normal(0, 2).log_prob(value).sum()))


def test_a_plate_that_is_not_active_is_refused():
    with numpyro.plate("station", 3), pytest.raises(ValueError, match="station"):
        px.bind(make_film(), plate="group")
    with pytest.raises(ValueError, match="group"):
        px.bind(make_film(), plate="group")


def test_a_bound_module_cannot_be_spread_over_a_plate():
    with numpyro.plate("group", 3):
        bound = px.bind(make_film(), plate="group")
        with pytest.raises(ValueError, match="already bound"):
            px.bind(bound, plate="group")


def test_one_name_with_and_without_a_plate_is_refused():
    film = make_film()

    def model():
        with px.bayesianize(), numpyro.plate("group", 3):
            px.bind(film, "film", plate="group")
            px.bind(film, "film")

    with pytest.raises(ValueError, match=r"with plate=.group. and without a plate"):
        sites(model)


@pytest.mark.parametrize("name", SITE_TYPES)
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_a_plate_multiplies_the_sites_of_no_handler(name, place):
    def model():
        plate = numpyro.plate("data", 7, subsample_size=2)
        outer, inner = (
            (plate, HANDLERS[name]())
            if place == "outside"
            else (HANDLERS[name](), plate)
        )
        with outer, inner:
            make_film()(H, Z)

    found = sites(model, types=("sample", "param"))
    assert [site["value"].shape for site in found.values()] == [(6, 2), (6,)]
    assert all(site["cond_indep_stack"] == [] for site in found.values())
    assert all(site["scale"] is None for site in found.values())


@pytest.mark.parametrize("dim", [None, -2])
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_learn_with_a_plate_has_a_param_per_member_and_takes_a_minibatch(place, dim):
    film = make_film()

    def model():
        group = numpyro.plate("group", 4, subsample_size=3, dim=dim)
        if place == "outside":
            with group, px.learn():
                return px.bind(film, plate="group")
        with px.learn(), numpyro.plate("other", 5, dim=-3), group:
            return px.bind(film, plate="group")

    found = sites(model, types=("param", "plate"))
    lead = (4,) if dim is None else (4, 1)
    weight = found["affine_modulation.generator.weight"]["value"]
    assert weight.shape == (*lead, 6, 2)
    members = jnp.broadcast_to(jnp.arange(4.0).reshape(*lead, 1, 1), weight.shape)
    data = {"affine_modulation.generator.weight": members}
    bound = run(numpyro.handlers.substitute(model, data))
    assert bound.generator.bias.shape == (3, 6)
    taken = found["group"]["value"].astype(float)
    np.testing.assert_array_equal(bound.generator.weight[:, 0, 0], taken)
    np.testing.assert_array_equal(run(model).generator.weight[1], film.generator.weight)


@pytest.mark.parametrize("dim", [None, -2])
def test_amortize_with_a_plate_takes_a_value_per_member_or_one_for_all(dim):
    def model(generator, context):
        group = numpyro.plate("group", 4, dim=dim)
        with group, px.amortize(generator=generator, context=context):
            return px.bind(make_film(), plate="group")

    contexts = jnp.arange(8.0).reshape(4, 2)
    bound = run(model, jax.vmap(film_values), contexts)
    np.testing.assert_array_equal(bound.generator.weight[:, 0, 0], contexts.sum(1))
    bound = run(model, film_values, Z)
    assert bound.generator.weight.shape == (4, 6, 2)
    with jax.numpy_rank_promotion("allow"):  # NumPyro's expanded Normal promotes
        bound = run(model, film_laws, Z)
    assert len(np.unique(np.asarray(bound.generator.weight))) == 4 * 12
