"""AutoSWAG: its moments and draws against NumPy, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import (
    SVI,
    Predictive,
    Trace_ELBO,
    TraceMeanField_ELBO,
    init_to_value,
)
from numpyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from numpyro.optim import SGD, Adam

import pyrox_ppl as px
from pyrox_ppl.infer import AutoSWAG, CompiledSVI

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (20, 3))
Y = X @ jnp.array([1.0, -2.0, 0.5])
STEPS, RANK, START, EVERY = 30, 4, 3, 2
SITES = ("scale", "weight", "offset")


def model(x, y=None):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    weight = numpyro.sample("weight", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("group", 2):
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
    numpyro.deterministic("scaled", weight * scale)
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(x @ weight + offset.sum(), scale), obs=y)


def log_posterior(u):
    """The density of the unconstrained values, by hand."""
    scale, weight, offset = jnp.exp(u["scale"]), u["weight"], u["offset"]
    residuals = (Y - X @ weight - offset.sum()) / scale
    return (
        -0.5 * jnp.sum(residuals**2)
        - len(Y) * u["scale"]
        - 0.5 * (u["scale"] ** 2 + jnp.sum(weight**2) + jnp.sum(offset**2))
    )


SLOPE = jax.jit(jax.grad(log_posterior))


def iterates(start):
    """Gradient ascent by hand: every location after the start."""
    u, found = start, []
    for _ in range(STEPS):
        slope = SLOPE(u)
        u = {name: u[name] + 0.002 * slope[name] for name in u}
        found.append({name: np.asarray(u[name], np.float64) for name in u})
    return found


def guide_of(model=model, rank=RANK, start=START, every=EVERY, **kwargs):
    return AutoSWAG(model, rank=rank, start=start, every=every, **kwargs)


def train(guide, make=CompiledSVI, loss=None, steps=STEPS, **kwargs):
    svi = make(guide.model, guide, SGD(0.002), loss or Trace_ELBO())
    fit = svi.run(KEY, steps, X, y=Y, progress_bar=False, **kwargs)
    return svi, fit


@pytest.fixture(scope="module")
def fitted():
    guide = guide_of()
    return guide, *train(guide)


@functools.cache
def collected():
    """The iterates that are to be collected, in float64."""
    # The last location is not seen: a step sees the one before it.
    guide = guide_of()
    state = SVI(model, guide, SGD(0.002), Trace_ELBO()).init(KEY, X, y=Y)
    start = dict(state.mutable_state["auto_moments"]["last"])
    every = [
        u
        for number, u in enumerate(iterates(start)[:-1], 1)
        if number > START and (number - START) % EVERY == 0
    ]
    return {name: np.stack([u[name] for u in every]) for name in SITES}


@pytest.fixture(scope="module")
def plain():
    """NumPyro's own run, with the other loss."""
    guide = guide_of()
    return guide, *train(guide, SVI, TraceMeanField_ELBO())


@pytest.mark.parametrize("run", ["fitted", "plain"])
def test_the_moments_are_those_of_the_iterates_by_hand(run, request):
    _, _, fit = request.getfixturevalue(run)
    moments = fit.state.mutable_state["auto_moments"]
    for name, values in collected().items():
        assert moments["count"] == len(values) == 13
        close = {"rtol": 1e-4, "atol": 1e-6}
        np.testing.assert_allclose(moments["mean"][name], values.mean(0), **close)
        spread = moments["squares"][name] / len(values)
        np.testing.assert_allclose(spread, values.var(0), rtol=1e-3, atol=1e-9)
        means = np.cumsum(values, 0) / np.arange(1, 14).reshape(
            -1, *[1] * values[0].ndim
        )
        expected = (values - means)[-RANK:]
        found = moments["deviations"][name]
        np.testing.assert_allclose(
            np.sort(found, 0), np.sort(expected, 0), rtol=1e-2, atol=1e-6
        )


def flat(by_site):
    sizes = {"scale": 1, "weight": 3, "offset": 2}
    parts = [np.reshape(by_site[n], (len(by_site[n]), sizes[n])) for n in SITES]
    return np.concatenate(parts, 1).astype(np.float64)


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.slow), RANK])
def test_draws_have_the_covariance_of_the_paper(fitted, rank):
    _, _, fit = fitted
    guide = guide_of(rank=rank)
    handlers.seed(guide, KEY)(X, y=Y)
    number = 40_000
    draws = dict(
        guide.sample_posterior(KEY, fit.params, X, y=Y, sample_shape=(number,))
    )
    np.testing.assert_allclose(
        draws["scaled"], draws["weight"] * draws["scale"][:, None], rtol=1e-5
    )
    draws["scale"] = np.log(draws["scale"])
    values = collected()
    means = {
        n: np.cumsum(v, 0) / np.arange(1, 14).reshape(-1, *[1] * v[0].ndim)
        for n, v in values.items()
    }
    variance = np.concatenate([np.ravel(values[n].var(0)) for n in SITES])
    deviations = flat({n: (values[n] - means[n])[13 - rank :] for n in SITES})
    expected = np.diag(variance)
    if rank:
        expected = 0.5 * (expected + deviations.T @ deviations / (rank - 1))
    found = np.cov(flat(draws).T)
    scale = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(
        found / np.outer(scale, scale), expected / np.outer(scale, scale), atol=0.03
    )
    mean = np.concatenate([np.ravel(values[n].mean(0)) for n in SITES])
    error = (flat(draws).mean(0) - mean) / scale
    assert np.abs(error).max() < 5 / np.sqrt(number)
    quantiles = dict(guide.quantiles(fit.params, [0.1, 0.5]))
    quantiles["scale"] = np.log(quantiles["scale"])
    np.testing.assert_allclose(
        flat(quantiles)[0], mean - 1.2815516 * scale, rtol=2e-3, atol=1e-5
    )
    median = guide.median(fit.params)
    for name in SITES:
        np.testing.assert_allclose(
            median[name], guide.quantiles(fit.params, 0.5)[name], rtol=1e-6
        )


@pytest.mark.slow
def test_the_stationary_covariance_of_sgd_is_that_of_mandt_2017():
    """A quadratic loss with gradient noise of covariance B, at rate e.

    The iterates are an autoregression, of variance e B / (A (2 - e A)) for a curvature
    A, which is e B / (2 A) for small rates.
    """
    curvature, noise, rate = jnp.array([1.0, 4.0]), jnp.array([3.0, 0.5]), 0.05

    def noisy():
        kick = noise * jax.random.normal(numpyro.prng_key(), (2,))
        u = numpyro.sample(
            "u", dist.ImproperUniform(dist.constraints.real_vector, (), (2,))
        )
        numpyro.factor("loss", -0.5 * jnp.sum(curvature * u**2) + jnp.sum(kick * u))

    start = functools.partial(init_to_value, values={"u": jnp.zeros(2)})
    guide = AutoSWAG(noisy, rank=100, start=500, every=20, init_loc_fn=start)
    svi = CompiledSVI(noisy, guide, SGD(rate), Trace_ELBO())
    fit = svi.run(KEY, 60_000, progress_bar=False)
    draws = guide.sample_posterior(KEY, fit.params, sample_shape=(20_000,))["u"]
    expected = rate * noise**2 / (curvature * (2 - rate * curvature))
    np.testing.assert_allclose(draws.var(0), expected, rtol=0.12)


def test_a_finished_fit_draws_when_called_and_starts_anew(fitted):
    guide, svi, fit = fitted
    drawn = Predictive(guide, params=fit.params, num_samples=2_000)(KEY, X)
    asked = guide.sample_posterior(KEY, fit.params, X, sample_shape=(2_000,))
    for name in SITES:
        np.testing.assert_allclose(
            drawn[name].std(0), asked[name].std(0), rtol=0.1, err_msg=name
        )
    again = svi.run(KEY, STEPS, X, y=Y, progress_bar=False, init_params=fit.params)
    assert again.params["auto_moments"]["count"] == 13
    first = guide.median(again.params)["weight"]
    assert np.abs(first - guide.median(fit.params)["weight"]).max() > 1e-3
    more = svi.run(KEY, STEPS, X, y=Y, progress_bar=False, init_state=fit.state)
    assert more.params["auto_moments"]["count"] == 28  # 59 locations seen, 3 left out


def test_it_starts_at_the_mode_of_autodelta():
    mode = CompiledSVI(model, AutoDelta(model), SGD(0.002), Trace_ELBO())
    params = mode.run(KEY, 3, X, y=Y, progress_bar=False).params
    svi = SVI(model, guide_of(), SGD(0.002), Trace_ELBO())
    state = svi.init(KEY, X, y=Y, init_params=params)
    found = svi.get_params(state)
    assert set(found) == set(params)
    for name in params:
        np.testing.assert_allclose(found[name], params[name], rtol=1e-5)


def test_evaluations_and_steps_left_out_do_not_count(fitted):
    _, svi, _ = fitted
    state = svi.init(KEY, X, y=Y)
    bad = jnp.full_like(Y, 1e30)  # its square is infinite
    seen = []
    for y in (Y, Y, bad, bad, Y, Y):
        svi.evaluate(state, X, y=Y)
        state, _ = svi.stable_update(state, X, y=y)
        seen.append(int(state.mutable_state["auto_moments"]["steps"]))
    # The first bad step still sees the location after the second good one.
    assert seen == [0, 1, 2, 2, 2, 3]


def test_numpyro_keeps_the_moments_in_its_state(plain):
    guide, _, fit = plain
    with pytest.raises(ValueError, match=r"no 'auto_moments'.*fit.state.mutable_state"):
        guide.sample_posterior(KEY, fit.params)
    params = {**fit.params, **fit.state.mutable_state}
    assert guide.median(params)["weight"].shape == (3,)
    with pytest.raises(ValueError, match="auto_moments"):
        px.to_datatree(fit.params, X, y=Y, guide=guide)


@pytest.mark.rank_promotion
def test_it_is_one_guide_of_a_list():
    guide = AutoGuideList(model)
    others = ["scale", "weight", "scaled"]
    guide.append(guide_of(handlers.block(model, hide=["offset", "scaled"])))
    guide.append(AutoNormal(handlers.block(model, hide=others)))
    svi = CompiledSVI(model, guide, Adam(0.01), Trace_ELBO())
    fit = svi.run(KEY, STEPS, X, y=Y, progress_bar=False)
    assert set(fit.params["auto_moments"]["mean"]) == {"scale", "weight"}
    draws = guide.sample_posterior(KEY, fit.params, sample_shape=(50,))
    for name in SITES:
        assert (draws[name].std(0) > 0).all(), name
