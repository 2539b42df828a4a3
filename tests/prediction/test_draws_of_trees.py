"""Draws out of DataTrees: by the names of axes, and of the guide's networks, too."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.infer import Predictive, Trace_ELBO

import pyrox_ppl as px

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (6, 2))


class Square(eqx.Module):
    a: jax.Array


def turned(tree):
    """The same tree: the order of its axes means nothing to xarray."""
    groups = {}
    for name, group in tree.children.items():
        variables = {key: v.transpose(*reversed(v.dims)) for key, v in group.items()}
        groups[name] = xr.Dataset(variables)
    return xr.DataTree.from_dict(groups)


@pytest.mark.parametrize("with_model", [True, False])
def test_axes_are_told_by_their_names(with_model):
    linear = eqx.nn.Linear(2, 2, key=KEY)
    convolution = eqx.nn.Conv2d(3, 3, 3, key=KEY)

    def model():
        with px.bayesianize():
            px.bind(linear, "linear")
            px.bind(convolution, "convolution")
        with numpyro.plate("group", 2), px.bayesianize():
            px.bind(Square(jnp.eye(2)), "square", plate="group")

    draws = Predictive(model, num_samples=4)(KEY)
    tree = px.to_datatree(draws, **({"model": model} if with_model else {}))
    for given in (tree, turned(tree)):
        modules = px.modules_from_draws(linear, given, name="linear")
        np.testing.assert_array_equal(modules.weight, draws["linear.weight"])
        modules = px.modules_from_draws(convolution, given, name="convolution")
        np.testing.assert_array_equal(modules.weight, draws["convolution.weight"])
        modules = px.modules_from_draws(Square(jnp.eye(2)), given, name="square")
        np.testing.assert_array_equal(modules.a, draws["square.a"])


def test_a_tree_without_chains_or_draws_says_how_to_select():
    linear = eqx.nn.Linear(2, 1, key=KEY)
    tree = px.to_datatree({"linear.weight": jnp.ones((2, 3, 1, 2))}, batch_ndims=2)
    posterior = tree["posterior"].to_dataset()
    stacked = posterior.stack(sample=("chain", "draw"))
    for part in (posterior.isel(chain=0), stacked):
        with pytest.raises(ValueError, match=r"isel\(chain=\[0\]\)"):
            px.module_from_draw(linear, xr.DataTree.from_dict({"posterior": part}), 0)
    with pytest.raises(TypeError, match=r"from_dict.*got Dataset"):
        px.module_from_draw(linear, posterior, 0)
    for index in ((2, 0), (0, 3), (-1, 0)):
        with pytest.raises(IndexError, match=r"the draws are \(2, 3\)"):
            px.module_from_draw(linear, tree, index)


def test_a_network_of_the_guide_comes_back(tmp_path):
    encoder, decoder = eqx.nn.Linear(2, 2, key=KEY), eqx.nn.Linear(1, 1, key=KEY)

    def model(x, y=None):
        with px.learn():
            net = px.bind(decoder, "decoder")
        with numpyro.plate("row", 6):
            u = numpyro.sample("u", dist.Normal(0.0, 1.0))
            mean = jax.vmap(net)(u[:, None])[:, 0]
            numpyro.sample("y", dist.Normal(mean, 0.3), obs=y)

    def guide(x, y=None):
        with px.learn():
            net = px.bind(encoder, "encoder")
        mean, log_std = jax.vmap(net)(x).T
        with numpyro.plate("row", 6):
            numpyro.sample("u", dist.Normal(mean, jnp.exp(log_std)))

    data = {"x": X, "y": X[:, 0]}
    svi = px.infer.CompiledSVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
    fit = svi.run(KEY, 5, progress_bar=False, **data)
    tree = px.to_datatree(fit, **data, model=model, guide=guide, num_samples=3)
    px.save(tmp_path / "fit.nc", tree, (encoder, decoder))
    saved = px.load(tmp_path / "fit.nc")
    for module, name in zip(saved.module, ("encoder", "decoder"), strict=True):
        trained = px.module_from_draw(module, saved.posterior, 0, name=name)
        for leaf in ("weight", "bias"):
            expected = fit.params[f"{name}.{leaf}"]
            np.testing.assert_array_equal(getattr(trained, leaf), expected)
    mean = px.predict(saved.module[0], saved.posterior, X, name="encoder").mean
    by_hand = X @ fit.params["encoder.weight"].T + fit.params["encoder.bias"][None]
    np.testing.assert_allclose(mean, by_hand, atol=1e-6)


def test_complex_draws_do_not_lose_their_imaginary_part():
    draws = {"net.a": jnp.full((3, 2, 2), 1j)}
    with pytest.raises(ValueError, match="complex, but the parameter is real"):
        px.modules_from_draws(Square(jnp.eye(2)), draws, name="net")
    modules = px.modules_from_draws(Square(1j * jnp.eye(2)), draws, name="net")
    np.testing.assert_array_equal(modules.a, draws["net.a"])


def test_a_parameter_without_an_axis_of_draws_is_no_draws():
    for linear in (eqx.nn.Linear(2, 1, key=KEY), eqx.nn.Linear(3, 5, key=KEY)):
        with pytest.raises(ValueError, match="is not the number of their sample axes"):
            px.modules_from_draws(linear, {"linear.weight": linear.weight})
