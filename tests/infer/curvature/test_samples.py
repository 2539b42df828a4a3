"""Curvature from a few random sums: its expectation is the exact one, for any model."""

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
    check_expectation,
    over_keys,
    values_of,
)
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl.infer.curvature import ModelAtMode, make_curvature

pytestmark = pytest.mark.rank_promotion
ROWS, NUM_KEYS = len(X), 400
MLP = eqx.nn.MLP(3, 6, 4, 1, activation=jnp.tanh, key=KEY)
LINEAR = eqx.nn.Linear(3, 3, key=KEY)


def positive(f):
    return jnp.exp(0.3 * f)


def full_normal(f):
    tril = jnp.zeros((len(f), 2, 2)).at[:, [0, 1], [0, 1]].set(positive(f[:, 2:4]))
    return dist.MultivariateNormal(f[:, :2], scale_tril=tril.at[:, 1, 0].set(f[:, 4]))


# What six numbers a row are parameters of, with at least two columns a row.
LAWS = {
    "logits": lambda f: dist.Categorical(logits=f),
    "probs": lambda f: dist.Categorical(probs=jax.nn.softmax(f)),
    "multinomial": lambda f: dist.Multinomial(4, logits=f),
    "normal": lambda f: dist.Normal(f, 0.5).to_event(1),
    "two heads": lambda f: dist.Normal(f[:, :3], positive(f[:, 3:])).to_event(1),
    "student": lambda f: dist.StudentT(
        3 + positive(f[:, :2]), f[:, 2:4], positive(f[:, 4:])
    ).to_event(1),
    "binomial": lambda f: dist.Binomial(5, logits=f).to_event(1),
    "poisson": lambda f: dist.Poisson(positive(f)).to_event(1),
    "bernoulli": lambda f: dist.Bernoulli(logits=f).to_event(1),
    "classes": lambda f: dist.Categorical(logits=f.reshape(-1, 2, 3)).to_event(1),
    "full normal": full_normal,
    "masked entries": lambda f: (
        dist.Normal(f, 0.5).mask(jnp.arange(6) % 2 == 0).to_event(1)
    ),
    "masked rows": lambda f: dist.Categorical(logits=f).mask(jnp.arange(ROWS) < 4),
}


def read(net):
    with px.bayesianize():
        return px.bind(net, "net")


def observe(name, law):
    zero = jnp.zeros(law.shape(), int if law.support.is_discrete else float)
    numpyro.sample(name, law, obs=zero)


def row_model(net, law, size=None, scale=1.0):
    """One outcome for each row; `size` is the number of all rows."""

    def model(x):
        f = jax.vmap(read(net))(x)
        rows = numpyro.plate("row", size or len(x), subsample_size=len(x))
        with rows, handlers.scale(scale=scale):
            observe("y", law(f))

    return model


def two_outcomes(x):
    f = jax.vmap(read(MLP))(x)
    with numpyro.plate("row", len(x)):
        observe("a", LAWS["logits"](f[:, :3]))
        observe("b", LAWS["normal"](f[:, 3:]))


def plate_of_outputs(x):
    f = jax.vmap(read(MLP))(x)
    with numpyro.plate("row", len(x), dim=-2), numpyro.plate("output", 6, dim=-1):
        observe("y", dist.Normal(f, 0.5))


def crossed_plates(x):
    """Rows and columns each have a network; a pair of them has three classes."""
    with px.bayesianize():
        rows, columns = px.bind(LINEAR, "net"), px.bind(LINEAR, "other")
    f = jax.vmap(rows)(x)[:, None] + jax.vmap(columns)(jnp.tanh(x[:4]))[None]
    with numpyro.plate("row", len(x), dim=-2), numpyro.plate("column", 4, dim=-1):
        observe("y", LAWS["logits"](f))


def with_classes(name):
    """A network that has three outputs."""
    net, x = NETWORKS[name]
    if name != "tied":
        out = eqx.nn.Linear(net.out.in_features, 3, key=KEY)
        net = eqx.tree_at(lambda n: n.out, net, out)
    return net, row_model(net, LAWS["logits"]), x


# A network, a model of it, and inputs.
CASES = {
    **{name: (MLP, row_model(MLP, law), X) for name, law in LAWS.items()},
    "minibatch": (MLP, row_model(MLP, LAWS["logits"], size=60), X),
    "scaled": (MLP, row_model(MLP, LAWS["logits"], scale=np.arange(6) + 0.5), X),
    "two outcomes": (MLP, two_outcomes, X),
    "plate of outputs": (MLP, plate_of_outputs, X),
    "crossed plates": (LINEAR, crossed_plates, X),
    **{n: with_classes(n) for n in ("recurrent", "convolutional", "lookup", "tied")},
}
OFTEN = {("logits", "kron"), ("normal", "diag")}
SAMPLES = {"logits": 3, "normal": 2}


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        pytest.param(n, s, marks=() if (n, s) in OFTEN else pytest.mark.slow)
        for n in CASES
        for s in ("diag", "kron")
    ],
)
def test_the_mean_over_keys_is_the_exact_curvature(name, structure):
    net, model, x = CASES[name]
    values = values_of(net)
    if name == "crossed plates":
        values |= {n.replace("net", "other"): v for n, v in values.items()}
    exact_at = ModelAtMode(model, values)
    exact = make_curvature(structure, exact_at, (x,), {})
    exact = exact.accumulate(exact_at, (x,), {}).arrays
    at_mode = ModelAtMode(model, values, num_samples=SAMPLES.get(name, 1))
    keys = jax.random.split(jax.random.key(5), NUM_KEYS)
    check_expectation(over_keys(structure, at_mode, (x,), keys), exact)


@pytest.mark.parametrize(
    "structure", [pytest.param("diag", marks=pytest.mark.slow), "kron"]
)
def test_labels_are_sampled_where_no_formula_is_known(structure):
    """Gumbel's information on its location is that of the normal law."""
    values = values_of(MLP)
    normal = ModelAtMode(row_model(MLP, LAWS["normal"]), values)
    exact = make_curvature(structure, normal, (X,), {})
    exact = exact.accumulate(normal, (X,), {}).arrays
    gumbel = row_model(MLP, lambda f: dist.Gumbel(f, 0.5).to_event(1))
    at_mode = ModelAtMode(gumbel, values, num_samples=2)
    keys = jax.random.split(jax.random.key(6), 2 * NUM_KEYS)
    check_expectation(over_keys(structure, at_mode, (X,), keys), exact)


@pytest.mark.parametrize("num_samples", [5, pytest.param(9, marks=pytest.mark.slow)])
def test_as_many_samples_as_columns_are_all_columns(num_samples):
    """Here in double precision, in which no digit may get lost."""
    with jax.enable_x64(True):
        net = jax.tree.map(lambda a: a.astype(float) if eqx.is_array(a) else a, MLP)
        x = X.astype(np.float64)
        values = {n: v.astype(float) for n, v in values_of(MLP).items()}
        found = []
        for num in (None, num_samples):
            model = row_model(net, LAWS["logits"])
            at_mode = ModelAtMode(model, values, num_samples=num)
            curvature = make_curvature("kron", at_mode, (x,), {}, key=KEY)
            found.append(curvature.accumulate(at_mode, (x,), {}, key=KEY).arrays)
        for name, value in found[0].items():
            assert found[1][name].dtype == np.float64
            np.testing.assert_array_equal(found[1][name], value)
