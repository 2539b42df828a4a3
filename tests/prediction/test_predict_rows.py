"""predict: which inputs are rows, and modules whose rows depend on each other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pyrox_ppl as px
from pyrox_ppl._bind import AbstractModule

KEY = jax.random.key(0)
WEIGHTS = jax.random.normal(KEY, (8, 2))
DRAWS = {"net.weight": WEIGHTS}
X = jax.random.normal(KEY, (300, 2))

# Functions of all rows at once; and of one row at a time.
COUPLED = {
    "batch normalisation": lambda x: x - x.mean(0, keepdims=True),
    "attention": lambda x: x + 0.01 * jax.nn.softmax(x @ x.T, -1) @ x,
    "softmax over rows": lambda x: jax.nn.softmax(x, 0),
    "running sum": lambda x: jnp.cumsum(x, 0),
    "from behind": lambda x: jnp.cumsum(x[::-1], 0)[::-1],
    "position": lambda x: x + jnp.arange(float(len(x)))[:, None],
    "number": lambda x: x / len(x),
    "power": lambda x: x ** (len(x) // 100),
    "count": lambda x: x / jnp.isfinite(x[:, :1]).sum(),
    "order": lambda x: jnp.sort(x, 0),
    "pooled": lambda x: x.mean(0, keepdims=True),
    "transposed": lambda x: x.T,
}
APART = {
    "sine": jnp.sin,
    "class": lambda x: jnp.argmax(x, -1),
    "number": lambda x: x + 0.0 * len(x) + jnp.ones(len(x))[:, None],
}


class Whole(AbstractModule):
    weight: jax.Array
    function: object = eqx.field(static=True)

    def forward(self, x):
        return self.function(x * self.weight[None])


def of_all_rows(function):
    """Mean over the draws, each evaluated at all rows at once."""
    with jax.numpy_rank_promotion("allow"):
        return np.stack([function(X * w) for w in WEIGHTS]).astype(float).mean(0)


@pytest.mark.parametrize("name", COUPLED)
def test_rows_that_depend_on_each_other_are_not_cut(name):
    module = Whole(jnp.ones(2), COUPLED[name])
    mean = px.predict(module, DRAWS, X, name="net", quantiles=()).mean
    np.testing.assert_allclose(mean, of_all_rows(COUPLED[name]), rtol=1e-3, atol=1e-3)
    for batch_size in (1, 7):
        with pytest.raises(ValueError, match="depend on the other points"):
            px.predict(module, DRAWS, X, name="net", batch_size=batch_size)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_rows_of_integers_that_depend_on_each_other_are_not_cut(dtype):
    x = (np.random.default_rng(0).random((300, 2)) * 255).astype("uint8")
    x = x > 99 if dtype == "bool" else x.astype(dtype)

    def centred(net, x):
        x = x.astype("float32")
        return (x - x.mean(0, keepdims=True)) * net.weight[None]

    module = Whole(jnp.ones(2), None)
    mean = px.predict(module, DRAWS, x, name="net", call=centred, quantiles=()).mean
    by_hand = (x - x.mean(0, dtype=float)) * np.asarray(WEIGHTS).mean(0)
    np.testing.assert_allclose(mean, by_hand, rtol=1e-4, atol=1e-4)


def test_rows_that_a_mask_couples_later_are_not_cut():
    last = np.arange(300)[:, None] >= 290

    def masked(net, x, mask):
        return x * net.weight[None] + (x * mask).sum(0, keepdims=True)

    module = Whole(jnp.ones(2), None)
    mean = px.predict(module, DRAWS, X, last, name="net", call=masked).mean
    by_hand = X * WEIGHTS.mean(0)[None] + X[290:].sum(0, keepdims=True)
    np.testing.assert_allclose(mean, by_hand, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_rows_that_do_not_are_cut(name, batch_size):
    module = Whole(jnp.ones(2), APART[name])
    mean = px.predict(module, DRAWS, X, name="net", batch_size=batch_size).mean
    np.testing.assert_allclose(mean, of_all_rows(APART[name]), atol=1e-5)


class Point(eqx.Module):
    weight: jax.Array
    kind: str = eqx.field(static=True, default="sum")

    def __call__(self, x, z=None, *, key=None):
        value = self.weight @ (x["x"] if isinstance(x, dict) else x)
        match self.kind:
            case "noisy":
                return value + jax.random.normal(key)
            case "pair":
                return value, value
            case "sign":
                return value > 0
            case "wave":
                return jnp.exp(1j * value)
            case "count":
                return 16_777_217 + (0 * value).astype(int)
        return value if z is None else value + z.sum()


def test_rows_by_keyword_and_in_dictionaries_are_rows():
    point, values = Point(jnp.ones(2)), WEIGHTS @ X.T
    expected = values.mean(0) + X.sum(1)
    for args, kwargs in (((X, X), {}), ((X,), {"z": X}), (({"x": X}, X), {})):
        mean = px.predict(point, DRAWS, *args, name="net", **kwargs).mean
        np.testing.assert_allclose(mean, expected, atol=1e-5)
    shared = px.predict(point, DRAWS, np.asarray(X), name="net", z=X[0]).mean
    np.testing.assert_allclose(shared, values.mean(0) + X[0].sum(), atol=1e-5)
    with pytest.raises(ValueError, match="different numbers of points"):
        px.predict(point, DRAWS, X, name="net", z=X[:5])
    assert px.predict(point, DRAWS, X[:0], name="net").mean.shape == (0,)
    assert px.predict(point, DRAWS, X[:1], name="net").mean.shape == (1,)


def test_every_draw_and_point_has_a_key_of_its_own():
    noisy = Point(jnp.ones(2), "noisy")
    still = {"net.weight": jnp.zeros((2000, 2))}
    ours = px.predict(noisy, still, X[:50], name="net", key=KEY)
    np.testing.assert_allclose(ours.std, 1.0, atol=0.1)
    assert np.ptp(ours.mean) > 0
    blocks = px.predict(noisy, still, X[:50], name="net", key=KEY, batch_size=7)
    np.testing.assert_array_equal(ours.mean, blocks.mean)


def test_values_of_any_dtype_are_summarised():
    values = np.asarray(WEIGHTS @ X.T, np.float64)
    share = px.predict(Point(jnp.ones(2), "sign"), DRAWS, X, name="net").mean
    np.testing.assert_allclose(share, (values > 0).mean(0), atol=1e-6)
    wave = Point(jnp.ones(2), "wave")
    waves = px.predict(wave, DRAWS, X, name="net", quantiles=())
    np.testing.assert_allclose(waves.mean, np.exp(1j * values).mean(0), atol=1e-5)
    np.testing.assert_allclose(waves.std, np.exp(1j * values).std(0), atol=1e-5)
    with pytest.raises(ValueError, match="complex values have no order"):
        px.predict(wave, DRAWS, X, name="net")
    count = px.predict(Point(jnp.ones(2), "count"), DRAWS, X, name="net")
    assert count.mean[0] == 16_777_217


def test_a_draw_that_is_no_number_shows():
    broken = {"net.weight": WEIGHTS.at[3, 0].set(jnp.nan)}
    prediction = px.predict(Point(jnp.ones(2)), broken, X, name="net")
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(prediction[:3]))


def test_what_cannot_be_called_so_is_named():
    point = Point(jnp.ones(2))
    with pytest.raises(TypeError, match=r"Point cannot be called.*'noise'"):
        px.predict(point, DRAWS, X, name="net", noise=1.0)
    with pytest.raises(ValueError, match="Point is a module"):
        px.predict(point, DRAWS, X, name="net", sites=["f"])
    with pytest.raises(ValueError, match=r"one array.*choose one.*call="):
        px.predict(Point(jnp.ones(2), "pair"), DRAWS, X, name="net")
    with pytest.raises(Exception, match=r"0 dim|ndim") as error:
        px.predict(point, DRAWS, X[0], name="net")
    assert "A single point is given as x[None]" in error.value.__notes__[-1]


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), jax.random.split(KEY, 50)])
def test_a_key_in_any_form_is_split(key):
    noisy = Point(jnp.ones(2), "noisy")
    still = {"net.weight": jnp.zeros((2000, 2))}
    ours = px.predict(noisy, still, X[:50], name="net", key=key)
    np.testing.assert_allclose(ours.std, 1.0, atol=0.1)
    assert np.ptp(ours.mean) > 0
    blocks = px.predict(noisy, still, X[:50], name="net", key=key, batch_size=7)
    np.testing.assert_array_equal(ours.mean, blocks.mean)


def test_a_key_of_two_numbers_is_no_two_points():
    class Scalar(eqx.Module):
        weight: jax.Array

        def __call__(self, x, key):
            return self.weight[0] * x + jax.random.normal(key)

    key, still = jax.random.PRNGKey(0), {"net.weight": jnp.zeros((2000, 2))}
    for points in (2, 3):
        ours = px.predict(Scalar(jnp.ones(2)), still, X[:points, 0], key, name="net")
        np.testing.assert_allclose(ours.std, np.ones(points), atol=0.1)


def test_numbers_that_may_be_keys_are_refused():
    keys = jax.random.split(jax.random.PRNGKey(0), 50)
    with pytest.raises(ValueError, match=r"may hold random keys.*wrap_key_data"):
        px.predict(Point(jnp.ones(2), "noisy"), DRAWS, X[:50], name="net", key=keys)


class Joined(AbstractModule):
    """A module of covariates by name, in the order that they come in."""

    weight: jax.Array

    def forward(self, covariates):
        joined = jnp.concatenate(list(covariates.values()), axis=-1)
        return joined @ self.weight


@pytest.mark.parametrize("rows", [3, None])
def test_a_dictionary_of_inputs_keeps_its_order(rows):
    shape = (1,) if rows is None else (rows, 1)
    covariates = {"south": jnp.ones(shape), "north": 2.0 * jnp.ones(shape)}
    weights = jnp.array([[1.0, 10.0], [2.0, 20.0]])
    mean = px.predict(
        Joined(weights[0]), {"joined.weight": weights}, covariates, progress_bar=False
    ).mean
    np.testing.assert_allclose(mean, np.full(shape[:-1], 31.5), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_no_rows_have_empty_predictions(batch_size):
    def model(x):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(w * x, 0.5))

    none, draws = jnp.zeros(0), {"w": jnp.arange(3.0)}
    options = {"uncertainty": True, "batch_size": batch_size, "sites": ["y"]}
    found = px.predict(model, draws, none, **options)["y"]
    parts = found.mean, found.std, *found.quantiles.values(), *found.uncertainty
    assert [part.shape for part in parts] == [(0,)] * len(parts)
    assert len(found.uncertainty) == 3


@pytest.mark.parametrize(
    ("size", "shape", "advice"),
    [
        (1, (5,), r"give x\[:, None\]"),
        (2, (5,), r"an array of shape \(points, 2\)"),
        (1, (5, 1, 1), r"are points of shape \(1, 1\)"),  # it would broadcast
        (2, (2,), r"a single point is given as x\[None\]"),
        ("scalar", (5, 1), r"one point of shape \(\) .*array of shape \(points,\)"),
    ],
)
def test_points_that_are_no_vectors_of_the_width_are_refused(size, shape, advice):
    net = eqx.nn.MLP(size, 1, 3, 1, key=jax.random.key(0))
    draws = {"mlp.layers.0.bias": jnp.ones((4, 3))}
    with pytest.raises(ValueError, match=advice):
        px.predict(net, draws, jnp.ones(shape))
    good = jnp.ones((5,) if size == "scalar" else (5, size))
    assert px.predict(net, draws, good).mean.shape == (5, 1)
