"""Diagonals against explicit Jacobians of each datum, and what rows must be."""

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
    X,
    fit,
    jacobians,
    model_of,
    values_of,
)
from jax.flatten_util import ravel_pytree

import pyrox_ppl as px

pytestmark = pytest.mark.rank_promotion


@pytest.mark.parametrize("name", NETWORKS)
def test_the_diagonal_sums_squared_gradients_of_each_datum(name):
    net, x = NETWORKS[name]
    values = values_of(net)
    found, _ = fit("diag", model_of(net), values, (x,))
    assert set(dict(found.plan.kinds).values()) == {"gradients"}
    for site, jacobian in jacobians(net, values, x).items():
        expected = np.sum(jacobian**2, (0, 1))
        diagonal = found.arrays[f"{site}.diagonal"].reshape(-1)
        np.testing.assert_allclose(diagonal, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "structure", ["diag", pytest.param("kron", marks=pytest.mark.slow)]
)
def test_masked_rows_leave_no_trace(structure):
    net, x = NETWORKS["mlp"]
    values, mask = values_of(net), jnp.arange(6) < 4
    masked, _ = fit(structure, model_of(net), values, (x, mask))
    short, _ = fit(structure, model_of(net), values, (x[:4],))
    for name, value in short.arrays.items():
        np.testing.assert_allclose(masked.arrays[name], value, rtol=1e-4, atol=1e-5)


def hierarchical(x):
    rule = px.priors.hierarchical()
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with px.bayesianize(prior=rule):
        net = px.bind(NETWORKS["mlp"][0], "net")
    with numpyro.plate("row", len(x)):
        law = dist.Normal(jax.vmap(net)(x), noise).to_event(1)
        numpyro.sample("y", law, obs=jnp.zeros((len(x), 2)))


def hierarchical_mode():
    values = {"noise": jnp.log(0.5)}
    for site, value in values_of(NETWORKS["mlp"][0]).items():
        values |= {f"{site}_decentered": value, f"{site}.scale": jnp.asarray(0.2)}
    return values


@pytest.mark.parametrize(
    "structure", [pytest.param("diag", marks=pytest.mark.slow), "kron"]
)
def test_scales_and_noise_without_a_rule_get_their_exact_part(structure):
    values = hierarchical_mode()
    full, _ = fit("full", hierarchical, values, (X,))
    found, prior = fit(structure, hierarchical, values, (X,))
    found.posterior(prior).check()
    kinds = dict(found.plan.kinds)
    for site, _, part in full.layout.parts():
        block = np.asarray(full.arrays["full"][part, part])
        if kinds[site] == "kron":
            # The scale of the prior multiplies the factor once for each side.
            np.testing.assert_allclose(
                np.trace(found.arrays[f"{site}.outputs"][0]) > 0, True
            )
            continue
        name = "block" if kinds[site] == "block" else "diagonal"
        value = np.asarray(found.arrays[f"{site}.{name}"])
        expected = block if name == "block" else block.diagonal()
        np.testing.assert_allclose(
            value.reshape(expected.shape), expected, rtol=1e-3, atol=1e-4
        )


def centred(n, x):
    f = jax.vmap(n)(x)
    return f - jnp.mean(f, 0, keepdims=True)


@pytest.mark.parametrize("structure", ["diag", "kron"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_coupled_rows_are_refused(structure, outputs):
    net = eqx.nn.MLP(3, outputs, 3, 1, key=KEY)
    with pytest.raises(ValueError, match=r"rows of the observed site 'y' are coupled"):
        fit(structure, model_of(net, centred), values_of(net), (X,))


def test_a_likelihood_over_all_rows_is_refused():
    net = eqx.nn.MLP(3, 1, 3, 1, key=KEY)

    def model(x):
        with px.bayesianize():
            bound = px.bind(net, "net")
        f = jax.vmap(bound)(x)[:, 0]
        law = dist.MultivariateNormal(f, jnp.eye(len(x)))
        numpyro.sample("y", law, obs=jnp.zeros(len(x)))

    values = values_of(net)
    with pytest.raises(ValueError, match="multivariate normal over the rows"):
        fit("diag", model, values, (X,))
    plain, _ = fit("full", model_of(net, noise=1.0), values, (X,))
    coupled, _ = fit("full", model, values, (X,))
    np.testing.assert_allclose(
        coupled.arrays["full"], plain.arrays["full"], rtol=1e-4, atol=1e-4
    )


def test_ravel_orders_sites_by_name():
    net, x = NETWORKS["mlp"]
    values = values_of(net)
    found, _ = fit("full", model_of(net), values, (x,))
    flat = ravel_pytree({n: values[n] for n in sorted(values)})[0]
    np.testing.assert_array_equal(found.layout.ravel(values), flat)
