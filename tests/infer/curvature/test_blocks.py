"""Diagonals and Kronecker factors against explicit Jacobians of each datum."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree

import pyrox_ppl as px
from pyrox_ppl.infer.curvature import ModelAtMode, make_curvature, prior_precision

pytestmark = pytest.mark.rank_promotion
KEY, NOISE = jax.random.key(0), 0.3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)).astype(np.float32)


class Recurrent(eqx.Module):
    """A GRU in a scan, and a readout."""

    cell: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __call__(self, xs):
        def step(h, x):
            return self.cell(x, h), None

        return self.out(jax.lax.scan(step, jnp.zeros(2), xs)[0])


class Convolutional(eqx.Module):
    """A strided and a grouped convolution, and a readout."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    out: eqx.nn.Linear

    def __call__(self, x):
        h = jnp.tanh(self.second(jnp.tanh(self.first(x))))
        return self.out(h.reshape(-1))


class Lookup(eqx.Module):
    """An embedding whose rows a datum looks up repeatedly, and a normalisation."""

    table: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    out: eqx.nn.Linear

    def __call__(self, ids):
        return self.out(self.norm(jax.vmap(self.table)(ids)).sum(0))


class Tied(eqx.Module):
    """One weight, used in two layers."""

    layer: eqx.nn.Linear

    def __call__(self, x):
        return self.layer(jnp.tanh(self.layer(x)))


NETWORKS = {
    "mlp": (eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=KEY), X),
    "recurrent": (
        Recurrent(eqx.nn.GRUCell(2, 2, key=KEY), eqx.nn.Linear(2, 1, key=KEY)),
        RNG.normal(size=(4, 3, 2)).astype(np.float32),
    ),
    "convolutional": (
        Convolutional(
            eqx.nn.Conv2d(2, 2, 3, stride=2, padding=1, key=KEY),
            eqx.nn.Conv2d(2, 4, 2, groups=2, key=KEY),
            eqx.nn.Linear(4, 1, key=KEY),
        ),
        RNG.normal(size=(3, 2, 4, 4)).astype(np.float32),
    ),
    "lookup": (
        Lookup(
            eqx.nn.Embedding(5, 2, key=KEY),
            eqx.nn.LayerNorm((3, 2)),
            eqx.nn.Linear(2, 1, key=KEY),
        ),
        RNG.integers(0, 5, size=(4, 3)),
    ),
    "tied": (Tied(eqx.nn.Linear(3, 3, key=KEY)), X),
}


def model_of(net, call=None, prior_std=1.0, noise=NOISE):
    """A regression on a network, whose outputs may be sites' events."""

    def model(x, mask=None):
        with px.bayesianize(prior_std=prior_std):
            bound = px.bind(net, "net")
        f = jax.vmap(bound)(x) if call is None else call(bound, x)
        y = jnp.zeros(f.shape)
        with numpyro.plate("row", len(x)):
            law = dist.Normal(f, noise).to_event(f.ndim - 1)
            numpyro.sample("y", law if mask is None else law.mask(mask), obs=y)

    return model


def values_of(net):
    """The parameters by site, a little away from the initial ones."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(net, eqx.is_array))
    found = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path).replace("[", ".").replace("]", "")
        shift = 0.3 * RNG.normal(size=leaf.shape).astype(np.float32)
        found[f"net{name}"] = leaf + shift
    return found


def with_values(net, values):
    arrays, static = eqx.partition(net, eqx.is_array)
    leaves, tree = jax.tree.flatten(arrays)
    return eqx.combine(jax.tree.unflatten(tree, list(values.values())), static)


def jacobians(net, values, x):
    """One datum's outputs over the noise, by each parameter: (row, output, entry)."""

    def outputs(values):
        return jax.vmap(with_values(net, values))(x) / NOISE

    found = jax.jacrev(outputs)(values)
    return {n: np.asarray(j).reshape(len(x), j.shape[1], -1) for n, j in found.items()}


def fit(structure, model, values, *batches, sites=None, key=None):
    at_mode = ModelAtMode(model, values, sites=sites)
    curvature = make_curvature(structure, at_mode, batches[0], {}, key=key)
    for batch in batches:
        curvature = curvature.accumulate(at_mode, batch, {}, key=key)
    return curvature, prior_precision(structure, at_mode, batches[0], {})


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


def dense(curvature, prior, site, shape):
    """One site's posterior precision as a matrix, by solving for every basis vector."""
    part = curvature.posterior(prior).parts[site]
    size = int(np.prod(shape))
    columns = part.solve(jnp.eye(size).reshape(size, *shape))
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


@pytest.mark.parametrize("structure", ["diag", "kron"])
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


@pytest.mark.parametrize("structure", ["diag", "kron"])
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
    for site, value in values.items():
        flat = np.asarray(draws[site]).reshape(30_000, -1)
        precision = dense(curvature, prior, site, value.shape)
        covariance = np.linalg.inv(precision)
        np.testing.assert_allclose(np.cov(flat.T), covariance, atol=0.04)
        variances = posterior.diagonal()[site].reshape(-1)
        np.testing.assert_allclose(variances, np.diag(covariance), rtol=1e-3)
    log_dets = [
        np.linalg.slogdet(dense(curvature, prior, s, v.shape))[1]
        for s, v in values.items()
    ]
    np.testing.assert_allclose(posterior.log_det(), sum(log_dets), rtol=1e-4)


def test_half_precision_weights_have_about_the_same_factors():
    net, x = NETWORKS["mlp"]
    values = values_of(net)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_array(a) else a, net)
    model = model_of(half, lambda n, x: jax.vmap(n)(x).astype(jnp.float32))
    found, _ = fit("kron", model, values, (x,))
    expected, _ = fit("kron", model_of(net), values, (x,))
    for name, value in expected.arrays.items():
        assert found.arrays[name].dtype == value.dtype
        size = float(jnp.abs(value).max())
        np.testing.assert_allclose(found.arrays[name], value, atol=0.05 * size)


def test_ravel_orders_sites_by_name():
    net, x = NETWORKS["mlp"]
    values = values_of(net)
    found, _ = fit("full", model_of(net), values, (x,))
    flat = ravel_pytree({n: values[n] for n in sorted(values)})[0]
    np.testing.assert_array_equal(found.layout.ravel(values), flat)
