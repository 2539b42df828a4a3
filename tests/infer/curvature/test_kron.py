"""Kronecker factors by hand, and where they are exact."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from curvature_cases import (
    KEY,
    NETWORKS,
    NOISE,
    RNG,
    X,
    fit,
    jacobians,
    model_of,
    values_of,
)

import pyrox_ppl as px
from pyrox_ppl.infer.curvature import ModelAtMode, make_curvature

pytestmark = pytest.mark.rank_promotion


@eqx.filter_jit
def solve(curvature, prior, site, shape, size):
    part = curvature.posterior(prior).parts[site]
    return part.solve(jnp.eye(size).reshape(size, *shape))


def dense(curvature, prior, site, shape):
    """One site's posterior precision as a matrix, by solving for every basis vector."""
    size = int(np.prod(shape))
    columns = solve(curvature, prior, site, shape, size)
    return np.linalg.inv(np.asarray(columns, float).reshape(size, size))


def test_factors_are_means_of_inputs_and_sums_of_gradients():
    """The conventions of laplace-torch: A is a mean, G a sum, H about G (x) A."""
    net, x = NETWORKS["mlp"]
    values = values_of(net)
    curvature, prior = fit("kron", model_of(net), values, (x[:4],), (x[4:],))
    first = [values[f"net.layers.0.{n}"] for n in ("weight", "bias")]
    readout = values["net.layers.1.weight"]
    hidden = np.tanh(x @ first[0].T + first[1])
    # Back through the tanh, a column for each output.
    back = np.asarray(readout)[None] * (1 - hidden**2)[:, None] / NOISE
    outputs = np.einsum("nco,ncp->op", back, back)
    inputs = x.T @ x / len(x)
    found = curvature.arrays
    mean = found["net.layers.0.weight.inputs"] / found["net.layers.0.weight.count"]
    np.testing.assert_allclose(mean[0], inputs, rtol=1e-5, atol=1e-6)
    for name in ("weight", "bias"):
        factor = found[f"net.layers.0.{name}.outputs"][0]
        np.testing.assert_allclose(factor, outputs, rtol=1e-4, atol=1e-5)
    precision = dense(curvature, prior, "net.layers.0.weight", (4, 3))
    expected = np.kron(outputs, inputs) + np.eye(12)
    np.testing.assert_allclose(precision, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mlp", "recurrent", "lookup"])
def test_the_last_layer_of_a_regression_has_exact_factors(name):
    net, x = NETWORKS[name]
    values = values_of(net)
    curvature, prior = fit("kron", model_of(net), values, (x,))
    for site, jacobian in jacobians(net, values, x).items():
        if site.startswith(("net.out", "net.layers.1")):
            shape = values[site].shape
            exact = np.einsum("nci,ncj->ij", jacobian, jacobian)
            precision = dense(curvature, prior, site, shape)
            expected = exact + np.eye(len(exact))
            np.testing.assert_allclose(precision, expected, rtol=1e-3, atol=1e-2)


def test_one_datum_and_one_output_make_every_factor_exact():
    net, x = eqx.nn.MLP(3, 1, 4, 1, activation=jnp.tanh, key=KEY), X[:1]
    values = values_of(net)
    curvature, prior = fit("kron", model_of(net), values, (x,))
    for site, jacobian in jacobians(net, values, x).items():
        exact = jacobian[0].T @ jacobian[0] + np.eye(jacobian.shape[-1])
        precision = dense(curvature, prior, site, values[site].shape)
        np.testing.assert_allclose(precision, exact, rtol=1e-3, atol=1e-3)


def test_a_convolution_at_a_single_place_is_a_linear_layer():
    net, x = eqx.nn.Conv2d(2, 2, 3, key=KEY), RNG.normal(size=(1, 2, 3, 3))
    values = values_of(net)
    model = model_of(net, lambda n, x: jax.vmap(n)(x).sum(1))
    curvature, prior = fit("kron", model, values, (x.astype(np.float32),))
    patch = x.reshape(1, 18)
    exact = np.kron(np.ones((2, 2)), patch.T @ patch) / NOISE**2 + np.eye(36)
    precision = dense(curvature, prior, "net.weight", (2, 2, 3, 3))
    np.testing.assert_allclose(precision, exact, rtol=1e-3, atol=1e-2)


def test_a_prior_that_is_no_product_has_no_factors():
    net = eqx.nn.Linear(3, 2, use_bias=False, key=KEY)
    values = values_of(net)
    product = np.outer([1.0, 2.0], [1.0, 3.0, 0.5]).astype(np.float32)
    curvature, prior = fit("kron", model_of(net, prior_std=product), values, (X,))
    curvature.posterior(prior).check()
    exact = np.kron(np.eye(2), X.T @ X) / NOISE**2 + np.diag(
        product.reshape(-1) ** -2.0
    )
    precision = dense(curvature, prior, "net.weight", (2, 3))
    np.testing.assert_allclose(precision, exact, rtol=1e-3, atol=1e-2)
    other = product + np.eye(2, 3, dtype=np.float32)
    curvature, prior = fit("kron", model_of(net, prior_std=other), values, (X,))
    with pytest.raises(ValueError, match=r"'net.weight'.*no product"):
        curvature.posterior(prior).check()


def test_draws_of_factors_have_the_covariance_of_the_solution():
    net, x = NETWORKS["mlp"]
    values = values_of(net)
    curvature, prior = fit("kron", model_of(net), values, (x,))
    posterior = curvature.posterior(prior)
    draws = posterior.sample(KEY, (30_000,))
    log_dets, diagonal = [], posterior.diagonal()
    for site, value in values.items():
        flat = np.asarray(draws[site]).reshape(30_000, -1)
        precision = dense(curvature, prior, site, value.shape)
        log_dets.append(np.linalg.slogdet(precision)[1])
        covariance = np.linalg.inv(precision)
        np.testing.assert_allclose(np.cov(flat.T), covariance, atol=0.04)
        variances = diagonal[site].reshape(-1)
        np.testing.assert_allclose(variances, np.diag(covariance), rtol=1e-3)
    np.testing.assert_allclose(posterior.log_det(), sum(log_dets), rtol=1e-4)


@pytest.mark.parametrize(
    ("structure", "dtype", "of_data"),
    [
        ("kron", jnp.bfloat16, jnp.float32),  # the network computes in single
        ("kron", jnp.bfloat16, jnp.bfloat16),
        ("diag", jnp.float16, jnp.float16),
    ],
)
def test_half_precision_networks_have_about_the_same_factors(structure, dtype, of_data):
    net, x = NETWORKS["mlp"]
    values = values_of(net)
    half = jax.tree.map(lambda a: a.astype(dtype) if eqx.is_array(a) else a, net)

    def single(net, x):
        return jax.vmap(net)(x.astype(of_data)).astype(jnp.float32)

    model = model_of(half, single)
    found, _ = fit(structure, model, values, (x,))
    expected, _ = fit(structure, model_of(net), values, (x,))
    for name, value in expected.arrays.items():
        assert found.arrays[name].dtype == value.dtype
        size = float(jnp.abs(value).max())
        np.testing.assert_allclose(found.arrays[name], value, atol=0.05 * size)


@pytest.mark.parametrize(("rows", "columns"), [(7, 4), (4, 3)])
def test_a_weight_in_both_of_two_crossed_plates_has_its_exact_block(rows, columns):
    """Each of its places belongs to a whole row or column of the data.

    Division by 0.5 is exact, so that the probe's signs can cancel to zero.
    """
    linear = eqx.nn.Linear(2, 1, use_bias=False, key=KEY)

    def model(x, z, y):
        with px.bayesianize():
            net = px.bind(linear, "net")
        mean = jax.vmap(net)(x) + jax.vmap(net)(z)[:, 0][None]
        with numpyro.plate("row", rows, dim=-2), numpyro.plate("column", columns):
            numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    x, z = (RNG.normal(size=(n, 2)).astype(np.float32) for n in (rows, columns))
    batch = x, z, np.zeros((rows, columns), np.float32)
    at_mode = ModelAtMode(model, {"net.weight": jnp.array([[0.3, -0.4]])})
    curvature = make_curvature("kron", at_mode, batch, {})
    found = curvature.accumulate(at_mode, batch, {}).arrays["net.weight.block"]
    each = (x[:, None] + z[None]).reshape(-1, 2) / 0.5
    np.testing.assert_allclose(found, each.T @ each, rtol=1e-5)
