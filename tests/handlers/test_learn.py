"""learn: param sites in NumPyro's inference and under its handlers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import (
    BIAS,
    OBSERVED,
    ROWS,
    WEIGHT,
    H,
    Z,
    make_field,
    make_film,
    run,
    sites,
)
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import initialize_model, log_density

import pyrox_ppl as px
from pyrox_ppl.infer import CompiledSVI

FILM = make_film()


def regression(h, y=None):
    with px.learn():
        mean = FILM(h, Z)
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("row", h.shape[0]):
        numpyro.sample("y", dist.Normal(mean, scale).to_event(1), obs=y)


def by_hand(h, y=None):
    weight = numpyro.param(WEIGHT, FILM.generator.weight)
    bias = numpyro.param(BIAS, FILM.generator.bias)
    beta, raw = jnp.split(weight @ Z + bias, 2)
    mean = (1.0 + jnp.tanh(raw))[None] * h + beta[None]
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("row", h.shape[0]):
        numpyro.sample("y", dist.Normal(mean, scale).to_event(1), obs=y)


def fitted(model):
    guide = AutoNormal(model)
    svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
    fit = svi.run(jax.random.key(0), 20, ROWS, OBSERVED, progress_bar=False)
    return guide, fit


@pytest.fixture(scope="module")
def learned():
    return fitted(regression)


def test_svi_learns_what_it_learns_of_the_model_by_hand(learned):
    _, fit = learned
    _, theirs = fitted(by_hand)
    assert set(fit.params) == {WEIGHT, BIAS, "scale_auto_loc", "scale_auto_scale"}
    np.testing.assert_allclose(fit.losses, theirs.losses, rtol=1e-4)
    for name, value in theirs.params.items():
        np.testing.assert_allclose(fit.params[name], value, rtol=1e-3, atol=1e-4)
    assert not np.allclose(fit.params[BIAS], FILM.generator.bias)


def test_a_site_starts_at_the_stored_value_and_init_params_moves_it():
    found = sites(regression, ROWS, types=("param",))
    np.testing.assert_array_equal(found[WEIGHT]["value"], FILM.generator.weight)
    svi = SVI(regression, AutoNormal(regression), numpyro.optim.Adam(0.1), Trace_ELBO())
    start = {BIAS: jnp.arange(6.0)}

    @jax.jit
    def first(key):
        return svi.get_params(svi.init(key, ROWS, OBSERVED, init_params=start))

    np.testing.assert_array_equal(first(jax.random.key(0))[BIAS], jnp.arange(6.0))


def test_predictive_takes_the_trained_values_from_params(learned):
    guide, fit = learned

    def mean(params):
        predictive = Predictive(regression, guide=guide, params=params, num_samples=300)
        return predictive(jax.random.key(1), ROWS)["y"].mean(0)

    trained = eqx.tree_at(
        lambda f: (f.generator.weight, f.generator.bias),
        FILM,
        (fit.params[WEIGHT], fit.params[BIAS]),
    )
    np.testing.assert_allclose(mean(fit.params), trained(ROWS, Z), atol=0.3)
    guided = {n: v for n, v in fit.params.items() if n.startswith("scale")}
    np.testing.assert_allclose(mean(guided), FILM(ROWS, Z), atol=0.3)
    assert np.abs(trained(ROWS, Z) - FILM(ROWS, Z)).max() > 0.6


def potential(model):
    """NUTS's potential at scale = 1; what a param is held at decides it."""
    info = initialize_model(
        jax.random.key(0),
        model,
        init_strategy=init_to_value(values={"scale": 1.0}),
        model_args=(ROWS, OBSERVED),
    )
    return float(info.potential_fn({"scale": jnp.array(0.0)}))


def constant(film):
    def model(h, y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        with numpyro.plate("row", h.shape[0]):
            numpyro.sample("y", dist.Normal(film(h, Z), scale).to_event(1), obs=y)

    return model


def test_nuts_holds_a_param_at_the_stored_value_or_at_what_is_substituted(learned):
    _, fit = learned
    params = {name: fit.params[name] for name in (WEIGHT, BIAS)}
    with handlers.substitute(data=params), px.learn():
        trained = px.bind(FILM)
    stored = potential(regression)
    held = potential(handlers.substitute(regression, data=params))
    assert stored == pytest.approx(potential(constant(FILM)), rel=1e-5)
    assert held == pytest.approx(potential(constant(trained)), rel=1e-5)
    assert abs(held - stored) > 1


def test_lift_turns_a_param_into_a_sample_of_its_prior():
    prior = {BIAS: dist.Normal(0.0, 2.0).expand((6,)).to_event(1)}
    lifted = handlers.lift(regression, prior=prior)
    found = sites(lifted, ROWS, types=("sample", "param"))
    assert found[BIAS]["type"] == "sample"
    assert found[WEIGHT]["type"] == "param"
    values = {BIAS: jnp.ones(6), "scale": 1.0}
    logp, _ = log_density(lifted, (ROWS, OBSERVED), {}, values)
    plain, _ = log_density(by_hand, (ROWS, OBSERVED), {}, values)
    expected = plain + dist.Normal(0.0, 2.0).log_prob(jnp.ones(6)).sum()
    assert float(logp) == pytest.approx(float(expected), rel=1e-5)


def test_block_and_substitute_and_scope_treat_it_as_any_param():
    hidden = sites(handlers.block(regression, hide=[BIAS]), ROWS, types=("param",))
    assert list(hidden) == [WEIGHT]
    data = {BIAS: jnp.arange(6.0)}
    found = sites(handlers.substitute(regression, data), ROWS, types=("param",))
    np.testing.assert_array_equal(found[BIAS]["value"], data[BIAS])
    scoped = sites(handlers.scope(regression, prefix="a", divider="."), ROWS)
    assert list(scoped) == ["a.scale", "a.y"]


def test_the_backbone_is_learned_and_the_generators_inferred():
    field = make_field(depth=3)

    def model(x):
        with px.bayesianize(), px.learn(where=px.is_backbone):
            return field(x, Z)

    found = sites(model, jnp.ones(2), types=("sample", "param"))
    for name, site in found.items():
        assert site["type"] == ("param" if ".inner." in name else "sample")
    assert len(found) == 4 + 6


def test_learn_in_a_guide_trains_a_module_of_the_guide():
    """An amortised guide by hand: its encoder's weights are SVI's params."""
    encoder = eqx.nn.Linear(1, 2, key=jax.random.key(0))
    y = jnp.linspace(-1.0, 1.0, 8)[:, None]

    def model(y):
        with numpyro.plate("row", 8):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 0.5), obs=y[:, 0])

    def guide(y):
        with px.learn():
            net = px.bind(encoder, "encoder")
        loc, log_scale = jax.vmap(net)(y).T
        with numpyro.plate("row", 8):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)))

    svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.02), Trace_ELBO(10))
    fit = svi.run(jax.random.key(0), 800, y, progress_bar=False)
    assert set(fit.params) == {"encoder.weight", "encoder.bias"}
    # The exact posterior: mean 0.8 y, standard deviation 0.2 ** 0.5.
    weight, bias = fit.params["encoder.weight"], fit.params["encoder.bias"]
    assert float(weight[0, 0]) == pytest.approx(0.8, abs=0.06)
    assert float(bias[0]) == pytest.approx(0.0, abs=0.06)
    scale = np.exp(weight[1, 0] * y + bias[1])
    np.testing.assert_allclose(scale, np.full((8, 1), 0.2**0.5), rtol=0.1)


def test_it_decorates_a_model():
    @px.learn(where="*.bias")
    def model():
        return FILM(H, Z)

    assert list(sites(model, types=("param",))) == [BIAS]
    np.testing.assert_allclose(run(model), FILM(H, Z))
