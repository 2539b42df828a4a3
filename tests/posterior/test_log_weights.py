"""Importance weights of a guide: float64 sums over a model that keeps its dtype."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro.handlers import scale
from numpyro.infer import Trace_ELBO, autoguide
from numpyro.infer.util import log_density

import pyrox_ppl as px

KEY = jax.random.key(0)
X = np.linspace(-1.0, 1.0, 6, dtype=np.float32)


def fit(model, guide, *args, steps=3):
    svi = px.infer.CompiledSVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
    return svi.run(KEY, steps, *args, progress_bar=False)


def weights(model, *args, guide=None, num_samples=8):
    """The log weights, the draws and the parameters of an AutoNormal, or a guide."""
    guide = guide or autoguide.AutoNormal(model)
    result = fit(model, guide, *args)
    tree = px.to_datatree(
        result, *args, guide=guide, model=model, num_samples=num_samples
    )
    found = tree["sample_stats"]["log_weight"]
    assert found.dtype == np.float64
    draws = {n: v.values[0] for n, v in tree["posterior"].data_vars.items()}
    return found.values[0], draws, jax.device_get(result.params)


def of_normal(draws, params, name):
    """The log q of an unconstrained site of an AutoNormal, by scipy in float64."""
    loc, spread = (params[f"{name}_auto_{part}"] for part in ("loc", "scale"))
    density = st.norm.logpdf(
        draws[name].astype(float), loc.astype(float), spread.astype(float)
    )
    return density.reshape(len(density), -1).sum(1)


def recurrent(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))

    def step(h, row):
        return jnp.tanh(w * h + row), None

    h, _ = jax.lax.scan(step, jnp.zeros((), jnp.float32), x)
    numpyro.sample("y", dist.Normal(h, 0.1), obs=y)


def convolutional(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    h = jax.lax.conv_general_dilated(x[None, None], w[None, None], (1,), "VALID")
    numpyro.sample("y", dist.Normal(h.sum(), 0.1), obs=y)


def looping(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    h = jax.lax.fori_loop(0, 3, lambda _, h: h * w + x[0], jnp.float32(1.0))
    numpyro.sample("y", dist.Normal(h, 0.1), obs=y)


def stateful(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(1, "b", mode="batch")
    call = jax.vmap(norm, axis_name="b", in_axes=(0, None), out_axes=(0, None))
    out, _ = call(w * x[:, None], state)
    numpyro.sample("y", dist.Normal(out[0, 0], 0.1), obs=y)


def by_hand(name, w, x):
    """The mean of y for one draw, in NumPy's float64."""
    if name == "recurrent":
        h = 0.0
        for row in x:
            h = np.tanh(w * h + row)
        return h
    if name == "convolutional":
        return sum(w[0] * x[i] + w[1] * x[i + 1] for i in range(len(x) - 1))
    if name == "looping":
        return ((w + x[0]) * w + x[0]) * w + x[0]
    out = w * x
    return ((out - out.mean()) / np.sqrt(out.var() + 1e-5))[0]


@pytest.mark.rank_promotion
@pytest.mark.parametrize("model", [recurrent, convolutional, looping, stateful])
def test_a_model_that_is_float32_by_its_nature_has_weights(model):
    found, draws, params = weights(model, X, 0.3)
    means = [
        by_hand(model.__name__, w, X.astype(float)) for w in draws["w"].astype(float)
    ]
    prior = st.norm.logpdf(draws["w"].astype(float)).reshape(len(found), -1).sum(1)
    y = float(np.float32(0.3))
    expected = st.norm.logpdf(y, means, float(np.float32(0.1))) + prior
    expected -= of_normal(draws, params, "w")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_the_sum_over_many_rows_is_that_of_float64():
    y = np.random.default_rng(0).normal(3.0, 1.0, 50_000).astype(np.float32)

    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    found, draws, params = weights(model, y)
    mean = draws["mean"].astype(float)
    expected = st.norm.logpdf(y.astype(float), mean[:, None], 1.0).sum(1)
    expected += st.norm.logpdf(mean, 0.0, 10.0) - of_normal(draws, params, "mean")
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def everything(y, rows=None):
    """Scales, masks, factors, a subsampled plate, a transformed and a masked prior."""
    rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.5))
    with numpyro.handlers.mask(mask=jnp.array([True, False])), numpyro.plate("g", 2):
        numpyro.sample("w", dist.Normal(0.0, 1.0))
    numpyro.factor("bonus", -0.5 * rate)
    with (
        numpyro.plate("row", len(y), subsample_size=rows),
        scale(scale=0.5),
    ):
        batch = numpyro.subsample(jnp.asarray(y), 0)
        numpyro.sample("y", dist.Gamma(2.0, rate), obs=batch)


def test_scale_mask_factor_and_plates_count_as_numpyro_counts_them():
    y = np.array([0.5, 1.0, 2.0, 4.0], np.float32)
    guide = autoguide.AutoDiagonalNormal(everything)
    found, draws, params = weights(everything, y, 2, guide=guide)
    rate, w = draws["rate"].astype(float), draws["w"].astype(float)
    expected = st.lognorm.logpdf(rate, 0.5) + st.norm.logpdf(w[:, 0]) - 0.5 * rate
    expected += 0.5 * st.gamma.logpdf(
        y.astype(float), 2.0, scale=1 / rate[:, None]
    ).sum(1)
    latent = np.column_stack([np.log(rate), w])
    density = st.norm.logpdf(latent, params["auto_loc"], params["auto_scale"])
    expected -= density.sum(1) - np.log(rate)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.rank_promotion
def test_a_flow_has_the_density_of_its_own_draws():
    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(a.sum(), 0.5), obs=y)

    guide = autoguide.AutoIAFNormal(model, hidden_dims=[4])
    result = fit(model, guide, 0.7)
    tree = px.to_datatree(result, 0.7, guide=guide, num_samples=5)
    flow = guide.get_posterior(result.params)
    for index in range(5):
        a = tree["posterior"]["a"].values[0, index]
        log_p, _ = log_density(model, (0.7,), {}, {"a": a})
        own = tree["sample_stats"]["log_weight"].values[0, index]
        np.testing.assert_allclose(own, log_p - flow.log_prob(a), atol=2e-4)


class Tent(dist.Distribution):
    """A user's distribution that is no pytree: its width is no declared field."""

    support = dist.constraints.real

    def __init__(self, width):
        self.width = width
        super().__init__()

    def sample(self, key, sample_shape=()):
        return jax.random.normal(key, sample_shape)

    def log_prob(self, value):
        return -jnp.abs(value) / self.width


def test_a_distribution_of_the_user_s_own_is_evaluated_in_float64_too():
    def model(y):
        width = numpyro.sample("width", dist.Normal(2.0, 0.5))
        numpyro.sample("y", Tent(width), obs=y)

    y = np.float32(1.0e4)
    found, draws, params = weights(model, jnp.asarray(y))
    width = draws["width"].astype(float)
    prior = st.norm.logpdf(width, 2.0, 0.5)
    expected = -float(y) / width + prior - of_normal(draws, params, "width")
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_weights_can_be_left_out_and_diagnose_says_how_to_have_them():
    guide = autoguide.AutoNormal(recurrent)
    tree = px.to_datatree(
        fit(recurrent, guide, X, 0.3), X, 0.3, guide=guide, log_weight=False
    )
    assert "log_weight" not in tree["sample_stats"]
    assert "log_weight=True" in str(px.diagnose(tree, loo=False))
