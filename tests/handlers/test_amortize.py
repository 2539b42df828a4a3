"""amortize: generated values and distributions, against what is written by hand."""

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
    film_values,
    make_film,
    run,
    sites,
)
from numpyro import handlers
from numpyro.infer import NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.util import log_density

import pyrox_ppl as px
from pyrox_ppl.nn import HyperLinear, HyperNetwork

KEY = jax.random.key(0)
FILM = make_film()
ONES = jnp.ones(6)
LINE = eqx.nn.Linear(3, 4, key=KEY)


def test_a_users_function_is_a_generator():
    def generate(z):
        return {"weight": jnp.outer(jnp.arange(4.0), z), "bias": z.sum() * jnp.ones(4)}

    z = jnp.array([1.0, 2.0, 3.0])
    with px.amortize(generator=generate, context=z):
        net = px.bind(LINE)
    by_hand = jnp.outer(jnp.arange(4.0), z) @ H + 6.0
    np.testing.assert_allclose(net(H), by_hand, rtol=1e-6)
    assert px.bind(LINE) is LINE


def test_a_function_of_the_stored_array_gets_it():
    def modulate(z):
        return {"weight": lambda stored: z[0] * stored}

    with px.amortize(generator=modulate, context=jnp.array([3.0])):
        net = px.bind(LINE)
    np.testing.assert_allclose(net.weight, 3.0 * LINE.weight)
    np.testing.assert_array_equal(net.bias, LINE.bias)


def test_the_sites_of_a_function_of_the_stored_array_stand_outside():
    def noisy(z):
        def around(stored):
            scale = numpyro.sample("scale", dist.HalfNormal(1.0))
            return dist.Normal(stored, scale * jnp.ones_like(stored))

        return {"weight": around}

    def model():
        with (
            px.amortize(generator=noisy, context=Z),
            numpyro.plate("rows", 7),
            px.scope("inner"),
        ):
            return px.bind(LINE, "line")

    found = sites(model)
    assert {n: s["value"].shape for n, s in found.items()} == {
        "scale": (),
        "inner.line.weight": (4, 3),
    }


def test_the_generator_runs_once_on_entry_under_the_handlers_outside():
    calls = []

    def generate(z):
        calls.append(numpyro.primitives._PYRO_STACK[:])
        return film_values(z)

    outer, inner = px.scope("outer"), px.scope("inner")
    block = px.amortize(generator=generate, context=Z)
    with outer:
        with block, inner:
            assert calls == [[outer]]
            FILM(H, Z)
            FILM(H, Z)
        assert len(calls) == 1


def model_of_layer(layer):
    def model(x, z, y=None):
        with px.bayesianize(prior_std=0.7):
            mean = layer(x, z)
        numpyro.sample("y", dist.Normal(mean, 0.3).to_event(2), obs=y)

    return model


def test_it_agrees_with_hyper_linear_by_the_same_weights():
    """Same prior sites, entry by entry; same output and density to float precision."""
    generator = HyperNetwork.init(LINE, 2, key=KEY)
    hyper = HyperLinear.init(3, 4, 2, key=KEY)

    def amortized(x, z):
        with px.amortize(generator=generator, context=z):
            return jax.vmap(px.bind(LINE))(x)

    ours, theirs = model_of_layer(amortized), model_of_layer(hyper)
    weight = 0.7 * jax.random.normal(KEY, (16, 2))
    bias = 0.7 * jax.random.normal(jax.random.key(1), (16,))
    of_hyper = {
        "hyper_linear.generator.weight": weight,
        "hyper_linear.generator.bias": bias,
    }
    of_heads = {
        "hyper_network.heads.weight.weight": weight[:12],
        "hyper_network.heads.weight.bias": bias[:12].reshape(4, 3),
        "hyper_network.heads.bias.weight": weight[12:],
        "hyper_network.heads.bias.bias": bias[12:],
    }
    y = jnp.ones((5, 4))
    found = sites(numpyro.handlers.substitute(ours, of_heads), ROWS, Z)
    expected = sites(numpyro.handlers.substitute(theirs, of_hyper), ROWS, Z)
    assert set(found) == set(of_heads) | {"y"}
    np.testing.assert_allclose(
        found["y"]["fn"].mean, expected["y"]["fn"].mean, rtol=1e-6, atol=1e-6
    )
    density, _ = log_density(ours, (ROWS, Z, y), {}, of_heads)
    by_layer, _ = log_density(theirs, (ROWS, Z, y), {}, of_hyper)
    assert float(density) == pytest.approx(float(by_layer), rel=1e-6)


def conditional_prior(z):
    """A prior whose location depends on the context."""
    return {"generator.bias": dist.Normal(z.sum() * jnp.ones(6), 0.5 * jnp.ones(6))}


def test_a_generated_distribution_is_a_conditional_prior():
    def model(z, y=None):
        with px.amortize(generator=conditional_prior, context=z):
            mean = FILM(H, Z)
        numpyro.sample("y", dist.Normal(mean, 0.3).to_event(1), obs=y)

    def by_hand(z, y=None):
        bias = numpyro.sample(BIAS, dist.Normal(z.sum(), 0.5).expand((6,)).to_event(1))
        film = eqx.tree_at(lambda f: f.generator.bias, FILM, bias)
        numpyro.sample("y", dist.Normal(film(H, Z), 0.3).to_event(1), obs=y)

    site = sites(model, Z)[BIAS]
    assert site["fn"].event_shape == (6,)
    for z in (Z, -2 * Z):
        args, values = (z, OBSERVED[0]), {BIAS: jnp.linspace(-1.0, 1.0, 6)}
        ours, _ = log_density(model, args, {}, values)
        theirs, _ = log_density(by_hand, args, {}, values)
        assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    drawn = Predictive(model, num_samples=500)(KEY, 10 * Z)[BIAS]
    np.testing.assert_allclose(drawn.mean(0), np.full(6, 15.0), atol=0.1)
    settings = {"num_warmup": 10, "num_samples": 10, "progress_bar": False}
    mcmc = px.infer.CompiledMCMC(NUTS(model), **settings)
    mcmc.run(KEY, Z, OBSERVED[0])
    assert mcmc.get_samples()[BIAS].shape == (10, 6)


def test_in_a_guide_it_is_an_amortised_posterior():
    """One line of known posterior per context: y = w x, x = z, four data sets."""
    line = eqx.nn.Linear(1, 1, use_bias=False, key=KEY)
    start = {"loc": jnp.zeros((1, 1)), "log_scale": jnp.zeros((1, 1))}
    generator = HyperNetwork.init(start, 1, key=KEY)
    x = jnp.linspace(0.5, 2.0, 10)[:, None]

    def model(slope):
        with px.bayesianize(prior_std=1.0):
            net = px.bind(line, "line")
        y = slope * x[:, 0]
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 1.0).to_event(1), obs=y)

    def law(z):
        made = generator(z)
        return {"weight": dist.Normal(made["loc"], jnp.exp(made["log_scale"]))}

    def guide(slope):
        with px.learn(), px.amortize(generator=law, context=slope[None]):
            px.bind(line, "line")

    svi = SVI(model, guide, numpyro.optim.Adam(0.02), Trace_ELBO(8))
    step = jax.jit(svi.update)
    state = jax.jit(svi.init)(KEY, jnp.array(0.0))
    for i in range(1200):
        state, _ = step(state, jnp.array([-1.0, 0.0, 0.5, 2.0])[i % 4])
    params = svi.get_params(state)
    assert all(name.startswith("hyper_network.heads.") for name in params)
    precision = float((x**2).sum()) + 1.0
    for slope in (-0.7, 0.2, 1.5):  # contexts that were not trained on
        guided = numpyro.handlers.substitute(guide, params)
        posterior = sites(guided, jnp.array(slope))["line.weight"]["fn"]
        exact = slope * (precision - 1.0) / precision
        assert float(posterior.mean[0, 0]) == pytest.approx(exact, abs=0.06)
        assert float(posterior.variance[0, 0]) == pytest.approx(1 / precision, rel=0.3)


def test_it_decorates_a_model_and_nests_with_another_generator():
    @px.amortize(generator=film_values, context=Z)
    def decorated():
        return FILM(H, Z)

    with px.amortize(generator=film_values, context=Z):
        by_block = FILM(H, Z)
    np.testing.assert_array_equal(decorated(), by_block)
    with (
        px.amortize(generator=lambda z: {"generator.bias": z.sum() * ONES}, context=Z),
        px.amortize(generator=film_values, context=Z, where="*.weight"),
    ):
        both = px.bind(FILM)
    np.testing.assert_array_equal(both.generator.weight, np.full((6, 2), Z.sum()))
    np.testing.assert_array_equal(both.generator.bias, np.full(6, Z.sum()))


def test_a_parameter_without_a_value_is_asked_of_the_handlers_outside():
    def model():
        values = {"generator.bias": jnp.zeros(6)}
        with px.bayesianize(), px.amortize(generator=lambda z: values, context=Z):
            return FILM(H, Z)

    assert list(sites(model)) == [WEIGHT]
    assert run(model).shape == (3,)


def test_a_generated_parameter_reaches_no_trace_and_no_outer_handler():
    seen = []

    def model():
        outer = px.bayesianize(where=lambda p: seen.append(p.name) or True)
        with numpyro.handlers.trace() as inner:
            with outer, px.amortize(generator=film_values, context=Z):
                px.bind(FILM)
                px.bind(LINE, "line")
            return inner

    found = run(model)
    assert list(found) == seen == ["line.weight", "line.bias"]


def test_a_plates_members_have_a_distribution_each():
    means = jax.random.normal(KEY, (4, 4, 3))

    def generate(i):
        return {"weight": dist.Normal(means[i], 1.0).to_event(1)}

    def model():
        plate = numpyro.plate("group", 4, subsample_size=2)
        with plate as index, px.amortize(generator=generate, context=index):
            px.bind(LINE, "line", plate="group")

    def by_hand():
        with numpyro.plate("group", 4, subsample_size=2) as index:
            prior = dist.Normal(means[index], 1.0).to_event(2)
            numpyro.sample("line.weight", prior)

    ours, theirs = sites(model), sites(by_hand)
    np.testing.assert_array_equal(
        ours["line.weight"]["value"], theirs["line.weight"]["value"]
    )
    values = {"line.weight": jnp.ones((2, 4, 3)), "group": jnp.array([0, 2])}
    density = log_density(handlers.seed(model, 0), (), {}, values)[0]
    expected = dist.Normal(means[jnp.array([0, 2])], 1.0).log_prob(1.0).sum() * 2
    np.testing.assert_allclose(density, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("of", "dim", "match"),
    [
        (dist.Normal(jnp.zeros((2, 4, 3)), 1.0), -2, "at dim=-2: put that plate"),
        (dist.Normal(jnp.zeros((2, 4, 3)), 1.0).to_event(3), -1, "be a batch axis"),
        (dist.Poisson(jnp.ones((2, 4, 3))), -1, "discrete"),
    ],
)
def test_members_distributions_that_cannot_stand_in_the_plate_are_refused(
    of, dim, match
):
    with (
        handlers.seed(rng_seed=0),
        numpyro.plate("group", 2, dim=dim),
        pytest.raises(ValueError, match=match),
        px.amortize(generator=lambda z: {"weight": of}, context=Z),
    ):
        px.bind(LINE, "line", plate="group")
