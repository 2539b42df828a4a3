"""linearize: against derivatives by hand, and what it refuses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, Predictive

import pyrox_ppl as px

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 5)[:, None]
MLP = eqx.nn.MLP(1, 1, 3, 1, activation=jnp.tanh, key=KEY)
AT = {"a": jnp.array(0.5), "b": jnp.array(1.2)}
DRAW = {"a": jnp.array(1.5), "b": jnp.array(0.4)}


def trace_of(model, draw, *args, seed=0, **kwargs):
    run = handlers.substitute(handlers.seed(model, seed), data=draw)
    return handlers.trace(run).get_trace(*args, **kwargs)


def model(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.LogNormal(0.0, 1.0))
    f = numpyro.deterministic("f", jnp.sin(a * x[:, 0]) * b)
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(f, jnp.exp(a) * b), obs=y)


def by_hand(function):
    """A function of a and log b, linear around AT, at DRAW."""
    at = AT["a"], jnp.log(AT["b"])
    moved = DRAW["a"] - at[0], jnp.log(DRAW["b"]) - at[1]
    value, tangent = jax.jvp(lambda a, u: function(a, jnp.exp(u)), at, moved)
    return value + tangent


def test_values_and_parameters_are_linear_in_unconstrained_space():
    y = jnp.cos(X[:, 0])
    trace = trace_of(px.linearize(model, AT), DRAW, X, y=y)
    f = by_hand(lambda a, b: jnp.sin(a * X[:, 0]) * b)
    scale = jnp.exp(by_hand(lambda a, b: a + jnp.log(b)))
    np.testing.assert_allclose(trace["f"]["value"], f, rtol=1e-5)
    fn = trace["y"]["fn"]
    np.testing.assert_allclose(fn.loc, f, rtol=1e-5)
    np.testing.assert_allclose(jnp.broadcast_to(fn.scale, 5), scale, rtol=1e-5)
    assert trace["y"]["is_observed"]
    np.testing.assert_array_equal(trace["y"]["value"], y)
    assert [frame.name for frame in trace["y"]["cond_indep_stack"]] == ["row"]


def test_at_the_mode_it_is_the_model():
    own, linear = (
        trace_of(m, AT, X, y=X[:, 0]) for m in (model, px.linearize(model, AT))
    )
    assert list(own) == ["a", "b", "f", "row", "y"]
    assert set(linear) == set(own)
    for name in ("f", "y"):
        np.testing.assert_allclose(own[name]["value"], linear[name]["value"], rtol=1e-6)
    np.testing.assert_allclose(
        own["y"]["fn"].log_prob(X[:, 0]), linear["y"]["fn"].log_prob(X[:, 0]), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("fn", "real"),
    [
        (lambda f: dist.Bernoulli(logits=f), lambda f: f),
        (lambda f: dist.Bernoulli(probs=jax.nn.sigmoid(f)), lambda f: f),
        (lambda f: dist.Poisson(jnp.exp(f)), lambda f: f),
        (
            lambda f: dist.Poisson(jax.nn.softplus(f)),
            lambda f: jnp.log(jax.nn.softplus(f)),
        ),
        (lambda f: dist.StudentT(4.0, f, 0.3), lambda f: f),
        (lambda f: dist.Normal(0.0, jnp.exp(f)).mask(X[:, 0] > 0), lambda f: f),
        (lambda f: dist.Normal(f, 0.1).to_event(1), lambda f: f),
        (lambda f: dist.LogNormal(f, 0.1), lambda f: f),
        (lambda f: dist.NegativeBinomial2(jnp.exp(f), 3.0), lambda f: f),
    ],
)
def test_every_likelihood_is_linear_where_it_is_unconstrained(fn, real):
    def one(x):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", fn(jnp.tanh(a * x[:, 0])))

    at, draw = {"a": jnp.array(0.5)}, {"a": jnp.array(-0.7)}
    value, tangent = jax.jvp(
        lambda a: real(jnp.tanh(a * X[:, 0])), (at["a"],), (draw["a"] - at["a"],)
    )
    made = trace_of(px.linearize(one, at), draw, X)["y"]["fn"]
    # The density of f -> y is that of the original at the f that gives this number.
    f = value + tangent
    if real(jnp.array(0.3)) != jnp.array(0.3):
        f = jnp.log(jnp.expm1(jnp.exp(f)))
    values = jnp.where(made.is_discrete, 1, 0.4) * jnp.ones(made.shape())
    expected = fn(f).log_prob(values)
    np.testing.assert_allclose(made.log_prob(values), expected, rtol=2e-5, atol=1e-6)


def test_probabilities_are_linear_as_logits():
    def one(x, logits):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        f = jnp.tanh(a * x * jnp.arange(3.0)[None])
        given = {"logits": f} if logits else {"probs": jax.nn.softmax(f)}
        numpyro.sample("y", dist.Categorical(**given))

    traces = [
        trace_of(px.linearize(one, {"a": 0.5}), {"a": jnp.array(2.0)}, X, logits)
        for logits in (True, False)
    ]
    probs = [trace["y"]["fn"].probs for trace in traces]
    np.testing.assert_allclose(*probs, rtol=1e-5)


def network(x, y=None):
    with px.bayesianize():
        net = px.bind(MLP, "net")
    with numpyro.plate("row", 20, subsample_size=len(x)):
        numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], 0.1), obs=y)


def test_predictive_of_a_network_draws_around_its_derivative():
    draws = Predictive(network, num_samples=3)(KEY, X)
    draws = {name: value for name, value in draws.items() if name != "y"}
    at = {name: value[0] for name, value in draws.items()}

    def f(weights):
        layers = [
            [weights[f"net.layers.{i}.{part}"] for part in ("weight", "bias")]
            for i in range(2)
        ]
        h = jnp.tanh(X @ layers[0][0].T + layers[0][1][None])
        return (h @ layers[1][0].T + layers[1][1][None])[:, 0]

    drawn = Predictive(px.linearize(network, at), draws)(KEY, X)["y"]
    noise = Predictive(network, {n: v * 0 for n, v in draws.items()})(KEY, X)["y"]
    for i in range(3):
        moved = {name: draws[name][i] - at[name] for name in at}
        value, tangent = jax.jvp(f, (at,), (moved,))
        np.testing.assert_allclose(
            drawn[i], value + tangent + noise[i], rtol=1e-4, atol=1e-5
        )
    site = trace_of(px.linearize(network, at), at, X, X[:, 0])["y"]
    assert site["scale"] == 4.0


@pytest.mark.slow
def test_nuts_samples_the_linear_model():
    def line(x, y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(jnp.exp(a) * x, 1.0).to_event(1), obs=y)

    x, y = jnp.ones(4), jnp.full(4, 1.5)
    mcmc = MCMC(
        NUTS(px.linearize(line, {"a": 0.0})),
        num_warmup=200,
        num_samples=1000,
        progress_bar=False,
    )
    mcmc.run(KEY, x, y)
    # f = 1 + a: a conjugate model with precision 5 and mean 4 * 0.5 / 5.
    draws = mcmc.get_samples()["a"]
    assert abs(float(draws.mean()) - 0.4) < 0.1
    assert abs(float(draws.std()) - 5**-0.5) < 0.1


def test_a_wrong_point_is_refused():
    for at, words in [
        ({"c": 1.0}, "'c'"),
        ({}, "names no site"),
        ({**AT, "a": jnp.zeros(2)}, r"shape \(2,\) for 'a'"),
    ]:
        with pytest.raises(ValueError, match=words):
            trace_of(px.linearize(model, at), DRAW, X, X[:, 0])
    with pytest.raises(TypeError, match="NumPyro model"):
        px.linearize(MLP, AT)


def with_argmax(x):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.deterministic("free", jnp.argmax(x))
    numpyro.deterministic("class", jnp.argmax(a * x))


def autoregressive(x):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    y = numpyro.sample("y", dist.Normal(a, 1.0), obs=x[0, 0])
    numpyro.sample("z", dist.Normal(a * y, 1.0))


def bounded(x):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Uniform(0.0, jnp.exp(a)))


def in_a_scan(x):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))

    def step(carry, row):
        numpyro.sample("y", dist.Normal(a * row, 1.0))
        return carry, None

    scan(step, 0.0, x[:, 0])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (with_argmax, "'class' holds integers"),
        (autoregressive, r"'z' depends on the values of the sample sites \['y'\]"),
        (bounded, "'high' of the distribution of the site 'y'"),
        (in_a_scan, "inside a scan or cond"),
    ],
)
def test_what_cannot_be_linearised_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        trace_of(px.linearize(wrong, {"a": 0.1}), {"a": jnp.array(0.3)}, X)


def test_a_block_outside_is_refused():
    linear = px.linearize(lambda: px.bind(MLP, "net"), {"net.layers.0.bias": 0.0})
    with (
        handlers.seed(rng_seed=0),
        pytest.raises(ValueError, match="put the block inside"),
        px.bayesianize(),
    ):
        linear()
