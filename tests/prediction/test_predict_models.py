"""predict of models that draw, subsample, scan or keep state: NumPyro's Predictive."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import make_mlp
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer import Predictive, Trace_ELBO
from numpyro.infer.reparam import LocScaleReparam

import pyrox_ppl as px

KEY = jax.random.key(3)
X = jnp.linspace(-1.0, 1.0, 5)
SLOPES = {"a": jnp.linspace(-1.0, 1.0, 7)}


def agree(model, draws, *args, params=None, **kwargs):
    """Ours against NumPyro's; `kwargs` are observations, which only ours is given."""
    theirs = Predictive(model, draws, params=params)(KEY, *args)
    ours = px.predict(model, draws, *args, rng_key=KEY, params=params, **kwargs)
    for name in ours.keys() - {"k"}:  # a label: class probabilities, not its mean
        values = np.asarray(theirs[name], np.float64)
        np.testing.assert_allclose(ours[name].mean, values.mean(0), atol=1e-5)
        np.testing.assert_allclose(ours[name].std, values.std(0), atol=1e-5)
    return ours


def line(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    keep = jax.random.bernoulli(numpyro.prng_key(), 0.5, x.shape)
    w = numpyro.param("w", lambda key: jax.random.normal(key, ()))
    f = numpyro.deterministic("f", jnp.where(keep, a * x + w, 0.0))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("k", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(f, 0.1), obs=y)


def test_keys_of_a_model_are_drawn_for_every_draw_as_in_predictive():
    agree(line, SLOPES, X)
    ours = agree(line, SLOPES, X, y=jnp.zeros(5))
    assert (ours["f"].std > 0).all()  # with one mask some would not move at all


def sliced(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 10, subsample_size=x.shape[0]):
        numpyro.sample("y", dist.Normal(a * x, 0.1), obs=y)


def in_two_plates(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("group", 3, dim=-2):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 10, subsample_size=x.shape[0], dim=-1):
            mean = level + (a * x)[None]
            numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)


@pytest.mark.parametrize("model", [sliced, in_two_plates])
@pytest.mark.parametrize("number", [1, 4, 10])
def test_a_plate_that_only_scales_has_as_many_rows_as_its_data(model, number):
    x = jnp.linspace(0.0, 1.0, number)
    rows = agree(model, SLOPES, x)["y"].mean.shape
    assert rows == ((number,) if model is sliced else (3, number))


def test_more_points_than_the_plate_has_are_points_all_the_same():
    assert px.predict(sliced, SLOPES, jnp.ones(13))["y"].mean.shape == (13,)


def by_index(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", x.shape[0], subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(a * x[rows], 0.1))


def by_subsample(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", x.shape[0], subsample_size=2):
        batch = numpyro.subsample(x, event_dim=0)
        numpyro.sample("y", dist.Normal(a * batch, 0.1))


def by_param(x, y=None):
    numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", x.shape[0], subsample_size=2):
        mean = numpyro.param("mean", 3.0 * x, event_dim=0)
        numpyro.sample("y", dist.Normal(mean, 0.1))


@pytest.mark.parametrize("model", [by_index, by_subsample, by_param])
def test_a_plate_that_picks_rows_takes_all_of_them(model):
    def whole(x):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", x.shape[0]):
            mean = 3.0 * x if model is by_param else a * x
            numpyro.sample("y", dist.Normal(mean, 0.1))

    ours = px.predict(model, SLOPES, X, rng_key=KEY)["y"]
    theirs = Predictive(whole, SLOPES)(KEY, X)["y"]
    np.testing.assert_allclose(ours.mean, theirs.mean(0), atol=1e-5)


def fed_back(n, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))

    def step(before, now):
        state = numpyro.sample("state", dist.Normal(a * before, 0.5))
        now = numpyro.sample("y", dist.Normal(state, 0.1), obs=now)
        return now, now

    scan(step, jnp.zeros(()), y, length=n)


def chosen(n, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))

    def branch(sign):
        return lambda _: numpyro.sample("y", dist.Normal(sign * a, 0.1), obs=y)

    last = cond(a > 0, branch(1.0), branch(-1.0), None)
    numpyro.sample("z", dist.Normal(last, 0.1))


@pytest.mark.parametrize(
    ("model", "y"), [(fed_back, jnp.arange(4.0)), (chosen, jnp.array(9.0))]
)
def test_what_is_observed_in_a_scan_or_cond_is_drawn_before_it_is_fed_back(model, y):
    agree(model, SLOPES, 4)
    agree(model, SLOPES, 4, y=y)
    if model is fed_back:
        states = jax.random.normal(KEY, (7, 4))
        agree(model, {**SLOPES, "state": states}, 4, y=y)


def network(x, y=None):
    with px.bayesianize(prior=px.priors.hierarchical()):
        net = px.bind(make_mlp(), "net")
    numpyro.deterministic("f", jax.vmap(net)(x)[:, 0])


def centred(x, y=None):
    with handlers.reparam(config={"a": LocScaleReparam(0.0)}):
        a = numpyro.sample("a", dist.Normal(1.0, 2.0))
    numpyro.deterministic("f", a * x)


@pytest.mark.parametrize(
    ("model", "x"), [(network, jnp.ones((3, 2))), (centred, jnp.ones(3))]
)
def test_a_parameter_that_was_drawn_without_its_noise_is_used(model, x):
    drawn = Predictive(model, num_samples=6)(KEY, x)
    latent = {n: v for n, v in drawn.items() if n != "f"}
    right = px.predict(model, latent, x)["f"]
    np.testing.assert_allclose(right.mean, drawn["f"].mean(0), rtol=1e-4)
    kept = {n: v for n, v in latent.items() if not n.endswith(("_decentered", "scale"))}
    ours = px.predict(model, kept, x, sites=["f"])["f"]
    np.testing.assert_allclose(ours.mean, right.mean, rtol=1e-4)
    everything = px.predict(model, kept, x)
    assert not any(name.endswith("_decentered") for name in everything)


def linear_with_noise(x, y=None):
    with px.bayesianize():
        net = px.bind(eqx.nn.Linear(1, "scalar", key=KEY), "net")
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(jax.vmap(net)(x[:, None]), scale), obs=y)


def test_draws_under_other_names_are_refused():
    weights = {"net.weight": jnp.ones((5, 1, 1)), "net.bias": jnp.ones((5, 1))}
    draws = weights | {"scale": jnp.ones(5)}
    of_other = {n.replace("net", "mlp"): v for n, v in draws.items()}
    with pytest.raises(ValueError, match=r"no site \['mlp.bias', 'mlp.weight'\]"):
        px.predict(linear_with_noise, of_other, X)
    misspelt = {n.replace("bias", "bais"): v for n, v in draws.items()}
    with pytest.raises(ValueError, match=r"draw \['net.bias'\] from"):
        px.predict(linear_with_noise, misspelt, X)
    with pytest.raises(ValueError, match=r"no site \['sigma'\]"):
        px.predict(linear_with_noise, {"sigma": jnp.ones(5)}, X)
    renamed = weights | {"sclae": jnp.ones(5)}
    with pytest.raises(ValueError, match=r"\['sclae'\], and would draw \['scale'\]"):
        px.predict(linear_with_noise, renamed, X)


def test_draws_of_more_sites_or_of_fewer_are_taken():
    weights = {"net.weight": jnp.ones((5, 1, 1)), "net.bias": jnp.ones((5, 1))}
    more = weights | {"scale": jnp.full(5, 1e-6), "group": jnp.ones((5, 3))}
    out = px.predict(linear_with_noise, more, X)
    np.testing.assert_allclose(out["y"].mean, X + 1.0, atol=1e-4)
    without_bias = {"net.weight": weights["net.weight"], "scale": more["scale"]}
    assert "net.bias" in px.predict(linear_with_noise, without_bias, X)
    # The site that is predicted has the shape of these draws, but is no latent one.
    of_rows = weights | {"scale": more["scale"], "local": jnp.ones((5, len(X)))}
    assert "y" in px.predict(linear_with_noise, of_rows, X)
    # A group of another size is another one, and drawn from the prior.
    groups = weights | {"group": jnp.ones((5, 3))}
    assert "scale" in px.predict(linear_with_noise, groups, X)


def test_a_deterministic_site_of_other_data_is_computed_anew():
    def model(x):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.deterministic("f", a * x)

    draws = {**SLOPES, "f": jnp.full((7, 9), 5.0)}
    for x in (X, jnp.ones(9)):
        mean = (np.asarray(SLOPES["a"])[:, None] * np.asarray(x)).mean(0)
        np.testing.assert_allclose(
            px.predict(model, draws, x)["f"].mean, mean, atol=1e-6
        )


def learned(x, y=None):
    w = numpyro.param("w", jnp.array(0.5))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(w * x, 0.1), obs=y)


def test_a_model_that_is_only_learned_is_one_draw():
    optim = numpyro.optim.Adam(0.1)
    svi = px.infer.CompiledSVI(learned, lambda x, y: None, optim, Trace_ELBO())
    fit = svi.run(KEY, 200, X, 3.0 * X, progress_bar=False)
    theirs = Predictive(learned, {}, params=fit.params, num_samples=1)(KEY, X)["y"][0]
    ours = px.predict(learned, {}, X, params=fit.params, rng_key=KEY)["y"]
    np.testing.assert_allclose(ours.mean, theirs, atol=1e-6)
    np.testing.assert_allclose(ours.mean, 3.0 * X, atol=0.5)
    with pytest.raises(ValueError, match="no draws and no params"):
        px.predict(learned, {}, X)
    with pytest.raises(ValueError, match=r"depend on \['a'\].*no draws"):
        px.predict(line, {}, X, params={"w": jnp.ones(())})
    with pytest.raises(ValueError, match=r"the sites \['w'\].*no trained values"):
        px.predict(learned, {}, X, params={"other": jnp.ones(())})


def test_no_points_and_no_draws():
    def model(x):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.deterministic("f", a * x)
        numpyro.deterministic("half", (a * jnp.ones(3)).astype(jnp.bfloat16))

    for batch_size in (None, 2):
        ours = px.predict(model, SLOPES, X[:0], batch_size=batch_size)
        assert ours["f"].mean.shape == ours["f"].quantiles[0.5].shape == (0,)
        np.testing.assert_allclose(ours["half"].quantiles[0.5], 0.0, atol=1e-6)
    with pytest.raises(ValueError, match="there are no draws"):
        px.predict(model, {"a": jnp.ones(0)}, X)


def test_boolean_and_half_precision_sites_are_summarised():
    def model():
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.deterministic("positive", a * jnp.ones(2) > 0)
        numpyro.deterministic("half", a.astype(jnp.float16))

    out = px.predict(model, SLOPES, sites=["positive", "half"])
    share = np.mean(SLOPES["a"] > 0)
    np.testing.assert_allclose(out["positive"].mean, [share, share], rtol=1e-6)
    np.testing.assert_allclose(out["positive"].quantiles[0.95], [1.0, 1.0])
    assert out["half"].mean.dtype == np.float32
