"""IVON: the paper's steps, and exact mean-field optima at its fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from numpyro.optim import Adam
from scipy import optimize
from scipy.special import expit

from pyrox_ppl.infer import IVON, AutoFlatNormal

pytestmark = pytest.mark.rank_promotion
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
N, D, STD = 24, 3, 0.8
X = (RNG.normal(size=(N, D)) @ (np.eye(D) + 0.3)).astype(np.float32)
Y = (X @ [1.0, -0.5, 0.2] + RNG.normal(size=N)).astype(np.float32)
LABELS = (Y > 0).astype(np.float32)


def decaying(start):
    return lambda i: start / (1.0 + i / 300.0)


def fit(model, guide, optim, loss, *args, steps=6000):
    svi = SVI(model, guide, optim, loss)
    return svi.run(KEY, steps, *args, progress_bar=False).params


def regression(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, STD).expand([D]).to_event(1))
    with numpyro.plate("row", N):
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def classification(x, y, prior=None, draws=None):
    w = numpyro.sample("w", prior or dist.Normal(0.0, STD).expand([D]).to_event(1))
    if draws is not None:
        jax.debug.callback(draws.append, w)
    with numpyro.plate("row", N, subsample_size=len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (AutoNormal, Trace_ELBO(num_particles=8)),
        (AutoFlatNormal, Trace_ELBO(num_particles=8, vectorize_particles=False)),
        (AutoDiagonalNormal, TraceMeanField_ELBO(num_particles=8)),
    ],
    ids=["sites", "one vector", "closed form"],
)
def test_its_fixed_point_is_the_exact_mean_field_optimum(make, loss):
    params = fit(regression, make(regression), IVON(decaying(0.3)), loss, X, Y)
    loc, scale = (params[n] for n in sorted(params))
    precision = X.T @ X + np.eye(D) / STD**2
    np.testing.assert_allclose(scale**-2, np.diag(precision), rtol=0.04)
    mean = np.linalg.solve(precision, X.T @ Y)
    np.testing.assert_allclose((loc - mean) / scale, 0.0, atol=0.1)


def transcribe(steps, batches, draws, *, rate, b1, b2, delta, clip, m, sigma):
    """Algorithm 1 of Shen et al. (2024), by the gradient of the mean loss."""
    h, g = 1.0 / (N * sigma**2) - delta, np.zeros(D)
    for t, (batch, drawn) in enumerate(zip(batches, draws, strict=True), start=1):
        x, y = X[batch], LABELS[batch]
        g_hat, h_hat = 0.0, 0.0
        for theta in drawn:
            gradient = x.T @ (expit(x @ theta) - y) / len(y)
            g_hat = g_hat + gradient / len(drawn)
            h_hat = h_hat + gradient * (theta - m) / sigma**2 / len(drawn)
        g = b1 * g + (1 - b1) * g_hat
        correction = 0.5 * (1 - b2) ** 2 * (h - h_hat) ** 2 / (h + delta)
        h = b2 * h + (1 - b2) * h_hat + correction
        direction = (g / (1 - b1**t) + delta * m) / (h + delta)
        m = m - rate(t - 1) * np.clip(direction, -clip, clip)
        sigma = 1.0 / np.sqrt(N * (h + delta))
    assert t == steps
    return m, sigma


@pytest.mark.parametrize(
    ("b1", "prior", "loss", "clip"),
    [
        (0.0, None, TraceMeanField_ELBO(), np.inf),
        (0.9, "flat", Trace_ELBO(), np.inf),
        (0.8, "flat", Trace_ELBO(num_particles=3), 0.02),
    ],
    ids=["normal prior", "momentum", "particles, clipped"],
)
def test_a_step_is_the_papers(b1, prior, loss, clip):
    def rate(i):
        return 0.3 / (1.0 + i)

    flat = dist.ImproperUniform(constraints.real_vector, (), (D,)) if prior else None
    drawn = []
    optim = IVON(rate, b1=b1, b2=0.9, clip_radius=clip)
    guide = AutoNormal(classification, init_scale=0.2)
    svi = SVI(classification, guide, optim, loss, prior=flat, draws=drawn)
    batches = [np.arange(k, N, 3) for k in (0, 1, 2, 0, 2)]
    state = svi.init(KEY, X[batches[0]], LABELS[batches[0]])
    start = svi.get_params(state)
    update, draws = jax.jit(svi.update), []
    for batch in batches:
        jax.effects_barrier()
        drawn.clear()
        state, _ = update(state, X[batch], LABELS[batch])
        jax.effects_barrier()
        draws.append(np.asarray(drawn, np.float64))
        assert draws[-1].shape == (loss.num_particles, D)
    m, sigma = transcribe(
        len(batches),
        batches,
        draws,
        rate=rate,
        b1=b1,
        b2=0.9,
        delta=0.0 if prior else 1.0 / (N * STD**2),
        clip=clip,
        m=np.asarray(start["w_auto_loc"], np.float64),
        sigma=np.asarray(start["w_auto_scale"], np.float64),
    )
    end = svi.get_params(state)
    np.testing.assert_allclose(end["w_auto_loc"], m, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(end["w_auto_scale"], sigma, rtol=1e-4)
    assert not np.allclose(sigma, start["w_auto_scale"], rtol=1e-2)


def test_logistic_regression_reaches_the_optimum_by_quadrature():
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)

    def loss(v):
        m, sigma = v[:D], np.exp(v[D:])
        spread = np.sqrt((X.astype(float) ** 2) @ sigma**2)
        logits = (X @ m)[:, None] + spread[:, None] * nodes
        data = np.logaddexp(0.0, logits) - LABELS[:, None] * logits
        prior = 0.5 * (m**2 + sigma**2).sum() / STD**2 - np.log(sigma).sum()
        return (data @ weights).sum() / weights.sum() + prior

    best = optimize.minimize(loss, np.zeros(2 * D)).x
    guide = AutoNormal(classification, init_scale=0.5)
    elbo = TraceMeanField_ELBO(num_particles=8)
    params = fit(classification, guide, IVON(decaying(0.3)), elbo, X, LABELS)
    scale = params["w_auto_scale"]
    np.testing.assert_allclose(scale, np.exp(best[D:]), rtol=0.03)
    np.testing.assert_allclose((params["w_auto_loc"] - best[:D]) / scale, 0, atol=0.1)


def noise_level(y):
    s = numpyro.sample("s", dist.LogNormal(0.5, 1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(jnp.log(s), 0.5), obs=y)


def hand_written(y):
    middle = numpyro.param("middle", 0.0)
    width = numpyro.param("width", 0.3, constraint=constraints.positive)
    numpyro.sample("s", dist.LogNormal(middle, width))


@pytest.mark.parametrize("by_hand", [False, True], ids=["AutoNormal", "hand-written"])
def test_a_positive_latent_is_exact_in_unconstrained_space(by_hand):
    pairs = {"middle": "width"} if by_hand else None
    guide = hand_written if by_hand else AutoNormal(noise_level)
    optim = IVON(decaying(0.3), pairs=pairs)
    params = fit(noise_level, guide, optim, Trace_ELBO(num_particles=4), Y[:7])
    names = ("middle", "width") if by_hand else ("s_auto_loc", "s_auto_scale")
    loc, scale = (params[name] for name in names)
    precision = 1.0 + 7 / 0.5**2
    assert scale**-2 == pytest.approx(precision, rel=0.05)
    mean = (0.5 + Y[:7].sum() / 0.5**2) / precision
    assert (loc - mean) / scale == pytest.approx(0.0, abs=0.1)


def test_latents_in_a_subsampled_plate_are_exact():
    y = jnp.asarray(Y[:6])

    def model():
        with numpyro.plate("row", 6, subsample_size=2) as rows:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 0.5), obs=y[rows])

    loss = TraceMeanField_ELBO(num_particles=4)
    params = fit(model, AutoNormal(model), IVON(decaying(0.2)), loss, steps=8000)
    np.testing.assert_allclose(params["z_auto_scale"] ** -2, 5.0, rtol=0.1)
    error = (params["z_auto_loc"] - 4.0 * y / 5.0) / params["z_auto_scale"]
    np.testing.assert_allclose(error, 0.0, atol=0.15)


def sloped(slope):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([D]).to_event(1))
    numpyro.factor("slope", (slope * w).sum())


@pytest.mark.parametrize("size", [1.0, 1e4, 1e12])
def test_the_precision_stays_positive_whatever_the_gradient(size):
    svi = SVI(sloped, AutoNormal(sloped), IVON(0.1, b2=0.5), Trace_ELBO())
    state = svi.init(KEY, jnp.zeros(D))
    update, halved = jax.jit(svi.update), False
    for slope in size * RNG.standard_t(1, size=(30, D)).astype(np.float32):
        before = svi.get_params(state)["w_auto_scale"]
        state, _ = update(state, slope)
        scale = svi.get_params(state)["w_auto_scale"]
        assert np.isfinite(scale).all()
        assert (scale > 0.0).all()
        # 1 + x + x^2 / 2 is at least one half.
        assert (scale <= before * np.sqrt(2.0) * 1.00001).all()
        halved |= bool((scale > before).any())
    assert halved


def test_stable_update_leaves_out_what_is_not_finite():
    svi = SVI(sloped, AutoNormal(sloped), IVON(0.1), Trace_ELBO())
    state = svi.init(KEY, jnp.zeros(D))
    same, loss = svi.stable_update(state, jnp.full(D, jnp.nan))
    assert np.isnan(loss)
    jax.tree.map(np.testing.assert_array_equal, same.optim_state, state.optim_state)
    moved, loss = svi.stable_update(state, jnp.ones(D))
    plain, _ = svi.update(state, jnp.ones(D))
    jax.tree.map(np.testing.assert_allclose, moved.optim_state[1], plain.optim_state[1])


def test_both_modes_of_differentiation_give_the_step():
    svi = SVI(regression, AutoNormal(regression), IVON(0.1), Trace_ELBO())
    state = svi.init(KEY, X, Y)
    moved, _ = svi.update(state, X, Y, forward_mode_differentiation=True)
    expected, _ = svi.update(state, X, Y)
    for name, value in svi.get_params(expected).items():
        np.testing.assert_allclose(svi.get_params(moved)[name], value, rtol=1e-5)


def test_it_holds_half_of_what_adam_holds():
    def size(optim):
        svi = SVI(regression, AutoNormal(regression), optim, Trace_ELBO())
        leaves = jax.tree.leaves(svi.init(KEY, X, Y).optim_state)
        return sum(leaf.nbytes for leaf in leaves if leaf.ndim)

    assert size(IVON(0.1)) * 2 == size(Adam(0.1))


def test_it_keeps_dtypes():
    with jax.enable_x64(True):
        params = fit(
            regression, AutoNormal(regression), IVON(0.1), Trace_ELBO(), X, Y, steps=3
        )
        assert {str(v.dtype) for v in params.values()} == {"float64"}
    optim = IVON(decaying(0.1))
    for dtype, kept in (("bfloat16", "float32"), ("float32", "float32")):
        with jax.enable_x64(dtype == "float32"):
            half = {n: jnp.ones(2, dtype) for n in ("loc", "scale")}
            state = optim.init(half)
            assert {str(v.dtype) for v in optim.get_params(state).values()} == {kept}
