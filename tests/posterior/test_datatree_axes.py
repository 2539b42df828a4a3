"""The axes of a tree: nothing vanishes behind one, and each is what its name says."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.reparam import LocScaleReparam

import pyrox_ppl as px

KEY = jax.random.key(0)


def tree_of(model, *args, **kwargs):
    """A tree of prior draws, and the draws."""
    observed = Predictive(model, num_samples=6)(KEY, *args)
    draws = {name: v for name, v in observed.items() if name not in kwargs}
    return px.to_datatree(draws, *args, model=model, **kwargs), draws


def check_all_there(tree, draws):
    assert {v.attrs.get("numpyro_name", n) for n, v in tree.posterior.items()} == set(
        draws
    )
    for name, values in draws.items():
        variable = tree.posterior[name]
        assert variable.dims[:2] == ("chain", "draw")
        np.testing.assert_allclose(variable.values[0], values, rtol=1e-5)


def test_no_site_vanishes_behind_an_axis_of_its_name():
    linear = eqx.nn.Linear(2, 3, key=KEY)

    def model(row_names, y=None):
        with px.bayesianize():
            net = px.bind(linear, "net")
        numpyro.deterministic("net.out", net(jnp.ones(2)))
        numpyro.deterministic("v", jnp.ones(2))
        numpyro.sample("v_dim_0", dist.Normal(0.0, 1.0))
        numpyro.sample("y_entry", dist.Normal(0.0, 1.0))
        with numpyro.plate("chain", 4), numpyro.plate("draw", 3, dim=-2):
            numpyro.sample("z", dist.Normal(0.0, 1.0))
        with (
            numpyro.plate("row", 3),
            handlers.mask(mask=jnp.array([True, False, True])),
        ):
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    tree, draws = tree_of(model, jnp.ones(3), y=jnp.arange(3.0))
    check_all_there(tree, draws)
    posterior = tree.posterior
    assert posterior["z"].dims[2:] == ("draw_axis", "chain_axis")
    assert tree.log_prior["z"].dims == ("chain", "draw", "draw_axis", "chain_axis")
    assert posterior["net.out"].dims == ("chain", "draw", "net.out_dim_0")
    assert posterior["net.bias"].dims == ("chain", "draw", "net.out_axis")
    assert posterior["v"].dims[2:] == ("v_dim_0_axis",)
    assert tree.observed_data["y"].dims == ("y_entry_axis",)
    assert tree.observed_data["y_row"].values.tolist() == [0, 2]


@pytest.mark.parametrize("name", ["chain", "draw"])
def test_a_site_with_the_name_of_an_axis_of_draws_is_refused(name):
    with pytest.raises(ValueError, match=rf"\['{name}'\].*rename"):
        px.to_datatree({name: jnp.ones(5), "a": jnp.ones(5)})


def test_arguments_may_have_any_name():
    def model(chain, x, x_dim_0, row):
        with numpyro.plate("row", 2):
            numpyro.sample("a", dist.Normal(0.0, 1.0))

    args = jnp.ones(2), jnp.arange(3.0), jnp.arange(4.0), jnp.ones(5)
    tree, _ = tree_of(model, *args)
    for name, value in zip(("chain", "x", "x_dim_0", "row"), args, strict=True):
        np.testing.assert_array_equal(tree.constant_data[name].values, value)


def test_one_name_of_two_plates_is_two_axes():
    def model():
        for size in (2, 3):
            with numpyro.plate("row", size):
                numpyro.sample(f"a{size}", dist.Normal(0.0, 1.0))

    tree, draws = tree_of(model)
    check_all_there(tree, draws)
    assert tree.posterior["a2"].dims[2:] == ("row_2",)
    assert tree.posterior["a3"].dims[2:] == ("row_3",)


@pytest.mark.parametrize("how", ["hierarchical", "horseshoe", "reparam"])
def test_a_non_centred_parameter_has_its_plate_in_front(how):
    line = eqx.nn.Linear(4, 2, key=KEY)  # as many inputs as groups

    def model():
        prior = None if how == "reparam" else getattr(px.priors, how)()
        config = {"net.weight": LocScaleReparam(0.0)} if how == "reparam" else {}
        with (
            numpyro.plate("group", 4),
            handlers.reparam(config=config),
            px.bayesianize(prior=prior),
        ):
            px.bind(line, "net", plate="group")

    tree, draws = tree_of(model)
    check_all_there(tree, draws)
    weight, bias = tree.posterior["net.weight"], tree.posterior["net.bias"]
    if how == "reparam":  # NumPyro's handler says of no site which parameter it is
        assert weight.dims[2] == "group"
        return
    assert weight.dims == ("chain", "draw", "group", "net.out", "net.in")
    assert bias.dims == ("chain", "draw", "group", "net.out")
    by_hand = np.asarray(draws["net.weight"]).sum(-1) + np.asarray(draws["net.bias"])
    np.testing.assert_allclose((weight.sum("net.in") + bias)[0], by_hand, rtol=1e-4)


def test_the_plate_of_a_deterministic_site_is_named_where_its_size_tells_it():
    def model():
        with numpyro.plate("row", 4):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            numpyro.deterministic("plain", a)
            numpyro.deterministic("features", jnp.ones((4, 3)) * a[:, None])
            numpyro.deterministic("square", jnp.ones((4, 4)) * a[:, None])

    posterior = tree_of(model)[0].posterior
    assert posterior["plain"].dims[2:] == ("row",)
    assert posterior["features"].dims[2:] == ("row", "features_dim_1")
    assert posterior["square"].dims[2:] == ("square_dim_0", "square_dim_1")


class Own(eqx.Module):
    weight: jax.Array
    bias: jax.Array


@pytest.mark.parametrize(
    ("module", "weight", "bias"),
    [
        (eqx.nn.Linear(2, 3, key=KEY), ("n.out", "n.in"), ("n.out",)),
        (eqx.nn.Linear(1, 3, key=KEY), ("n.out", "n.in"), ("n.out",)),
        (eqx.nn.Linear(3, 3, key=KEY), ("n.out", "n.in"), ("n.out",)),
        (
            eqx.nn.Conv1d(2, 3, 4, key=KEY),
            ("n.out", "n.in", "n.weight_dim_2"),
            ("n.out", "n.bias_dim_1"),
        ),
        (
            eqx.nn.ConvTranspose2d(2, 3, 2, key=KEY),
            ("n.out", "n.in", "n.weight_dim_2", "n.weight_dim_3"),
            ("n.out", "n.bias_dim_1", "n.bias_dim_2"),
        ),
        (eqx.nn.LayerNorm(3), ("n.out",), ("n.out",)),
        # The bias is added to the inputs.
        (
            Own(jnp.ones((3, 2)), jnp.ones(2)),
            ("n.weight_dim_0", "n.weight_dim_1"),
            ("n.bias_dim_0",),
        ),
    ],
)
def test_the_axes_of_a_root_modules_weight_and_bias(module, weight, bias):
    def model():
        with px.bayesianize():
            px.bind(module, "n")

    posterior = tree_of(model)[0].posterior
    assert posterior["n.weight"].dims[2:] == weight
    assert posterior["n.bias"].dims[2:] == bias
