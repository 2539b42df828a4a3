"""The draws and the tuning of Kronecker factors of a convolution, traced and saved."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO
from numpyro.optim import Adam

import pyrox_ppl as px
from pyrox_ppl.infer import AutoLaplace, CompiledSVI

pytestmark = pytest.mark.rank_promotion
KEY = jax.random.key(0)
X = np.float32(np.random.default_rng(0).normal(size=(6, 2, 5)))
Y = np.float32(np.sin(X.sum((1, 2))))


class Net(eqx.Module):
    """A transposed convolution, whose axes are not in the order of its factors."""

    conv: eqx.nn.ConvTranspose1d
    readout: eqx.nn.Linear

    def __call__(self, x):
        return self.readout(jnp.tanh(self.conv(x)).reshape(-1))


NET = Net(
    eqx.nn.ConvTranspose1d(2, 3, 3, key=KEY),
    eqx.nn.Linear(21, 1, key=jax.random.key(1)),
)


def model(x, y=None):
    with px.bayesianize(prior=px.priors.normal(0.5)):
        net = px.bind(NET, "net")
    f = numpyro.deterministic("f", jax.vmap(net)(x)[:, 0])
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(f, 0.3), obs=y)


@pytest.fixture(scope="module")
def fitted():
    guide = AutoLaplace(model, "kron")
    svi = CompiledSVI(model, guide, Adam(0.02), Trace_ELBO())
    fit = svi.run(KEY, 100, X, Y, progress_bar=False)
    return guide, guide.add_curvature(fit, X, Y, max_decrement=np.inf)


def test_the_order_of_axes_is_in_the_names(fitted):
    _, fit = fitted
    orders = {name for name in fit.params if "net.conv.weight.axes." in name}
    assert len(orders) == 1
    assert all(np.shape(fit.params[name]) == () for name in orders)
    # A test of tracing would be void if the factors were in the weight's own order.
    (order,) = (name.rpartition(".")[2] for name in orders)
    assert order not in ("", "0_1_2")


def test_compiled_draws_are_those_of_the_guide(fitted):
    guide, fit = fitted
    draw = jax.jit(lambda key, params: guide.sample_posterior(key, params))
    expected = guide.sample_posterior(KEY, fit.params)
    for name, value in draw(KEY, fit.params).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)
    levels = jax.jit(lambda params: guide.quantiles(params, [0.1, 0.9]))(fit.params)
    for name, value in guide.quantiles(fit.params, [0.1, 0.9]).items():
        np.testing.assert_allclose(levels[name], value, rtol=1e-4, atol=1e-5)


def test_draws_have_the_variances_of_the_factors(fitted):
    """Each entry of the weight is at its own place: variances by hand, entry by entry.

    For one block, H = A (x) G + I / 0.5^2 in the order (inputs, outputs).
    """
    guide, fit = fitted
    start = "auto_laplace.curvature.kron.net.conv.weight"
    inputs = np.float64(fit.params[f"{start}.inputs"][0])
    inputs /= float(fit.params[f"{start}.count"])
    outputs = np.float64(fit.params[f"{start}.outputs"][0])
    size = len(inputs) * len(outputs)
    precision = np.kron(inputs, outputs) + np.eye(size) / 0.5**2
    (name,) = (name for name in fit.params if name.startswith(f"{start}.axes."))
    order = [int(axis) for axis in name.rpartition(".")[2].split("_")]
    shape = NET.conv.weight.shape
    variances = np.diag(np.linalg.inv(precision)).reshape([shape[a] for a in order])
    variances = variances.transpose(np.argsort(order))
    draws = guide.sample_posterior(KEY, fit.params, sample_shape=(20_000,))
    found = draws["net.conv.weight"].var(0)
    np.testing.assert_allclose(found, variances, rtol=0.06)


def test_the_prior_is_tuned(fitted):
    guide, fit = fitted
    assert set(guide.tune_prior(fit, X, Y)) == set(guide.median(fit.params))
    priors = guide.tune_prior(fit, X, Y, groups=["*"])
    scales = {float(prior.scale) for prior in priors.values()}
    assert len(scales) == 1
    # At the maximum of the evidence, another scale is worse (MacKay's equation).
    assert 0.05 < scales.pop() < 5.0


@pytest.mark.parametrize("suffix", ["nc", "zip"])
def test_a_saved_tree_restores_the_factors(fitted, tmp_path, suffix):
    guide, fit = fitted
    tree = px.to_datatree(fit, X, Y, guide=guide, num_samples=4)
    px.save(tmp_path / f"fit.{suffix}", tree, NET, name="net")
    loaded = px.load(tmp_path / f"fit.{suffix}")
    found = px.predict(loaded.module, loaded.posterior, X, name="net")
    by_model = px.predict(model, tree, X, sites=["f"])["f"]
    np.testing.assert_allclose(found.mean[:, 0], by_model.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.std[:, 0], by_model.std, rtol=1e-3, atol=1e-5)
    group = loaded.posterior["guide_params"]
    params = {
        variable.attrs.get("numpyro_name", name): variable.values
        for name, variable in group.data_vars.items()
    }
    expected = guide.sample_posterior(KEY, fit.params)
    for name, value in guide.sample_posterior(KEY, params).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def test_draws_keep_their_digits_on_a_gpu(fitted):
    guide, fit = fitted

    def draw(params):
        return guide.sample_posterior(KEY, params, sample_shape=(2,))

    program = str(jax.make_jaxpr(draw)(fit.params))
    in_full = "precision=(Precision.HIGHEST, Precision.HIGHEST)"
    assert program.count("dot_general[") == program.count(in_full) > 0


def test_the_curvature_keeps_its_digits_on_a_gpu(fitted, monkeypatch):
    guide, fit = fitted
    seen = []

    class SeenError(Exception):
        """The model was called, which is enough to know."""

    def watched(x, y=None):
        seen.append(jax.config.jax_default_matmul_precision)
        raise SeenError

    with pytest.raises(SeenError):
        guide.add_curvature(fit, X, Y, model=watched)
    monkeypatch.setattr(guide, "model", watched)
    with pytest.raises(SeenError):
        guide.tune_prior(fit, X, Y)
    assert seen == ["highest"] * 2
