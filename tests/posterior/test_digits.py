"""On handwritten digits: what recalibration, comparison and selection promise."""

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from sklearn.datasets import load_digits

import pyrox_ppl as px

TRAIN, HELD_OUT, TEST = slice(0, 200), slice(200, 1000), slice(1000, None)


def network(key):
    return eqx.nn.MLP(64, 10, 32, 2, key=key)


def model(x, y=None):
    net = network(jax.random.key(0))
    with px.bayesianize(prior_std=1.0):
        net = px.bind(net, "net")
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=jax.vmap(net)(x)), obs=y)


@jax.jit
def train(keys, x, y):
    """Networks from different starts, each until it knows its data by heart."""
    optim = optax.adam(3e-3)

    def one(key):
        params, static = eqx.partition(network(key), eqx.is_array)

        def loss(params):
            logits = jax.vmap(eqx.combine(params, static))(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        def step(carry, _):
            params, state = carry
            updates, state = optim.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optim.init(params)), None, 1500)[0][0]

    return jax.vmap(one)(keys)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return np.float32(x[order] / 16), y[order]


@pytest.fixture(scope="module")
def members(digits):
    x, y = digits
    params = train(jax.random.split(jax.random.key(1), 8), x[TRAIN], y[TRAIN])
    layers = enumerate(params.layers)
    return {
        f"net.layers.{number}.{name}": np.asarray(getattr(layer, name))
        for number, layer in layers
        for name in ("weight", "bias")
    }


def tree_of(draws, digits, rows, number=8):
    x, y = digits
    some = {name: values[:number] for name, values in draws.items()}
    return px.to_datatree(some, x[rows], y=y[rows], model=model)


@pytest.mark.slow
def test_temperature_halves_the_calibration_error_of_a_point_estimate(digits, members):
    held_out = tree_of(members, digits, HELD_OUT, number=1)
    fitted = px.recalibrate(held_out, "temperature")
    assert fitted.fitted.temperature > 1
    test = tree_of(members, digits, TEST, number=1)
    p, labels = test["uncertainty"]["y_probability"].values, digits[1][TEST]
    error = px.scores.expected_calibration_error
    assert error(labels, fitted.apply(p)).value < error(labels, p).value / 2


@pytest.mark.slow
def test_an_ensemble_is_better_than_its_member_and_the_comparison_is_sure(
    digits, members
):
    one, all_ = (tree_of(members, digits, TEST, number) for number in (1, 8))
    comparison = px.compare({"member": one, "ensemble": all_})
    assert comparison.methods == ("ensemble", "member")
    for score, sign in {"elpd": -1, "brier": 1}.items():
        value, se = comparison.difference(score)["member"]
        assert sign * value > 2 * se > 0


@pytest.mark.slow
def test_accuracy_rises_as_uncertain_digits_are_rejected(digits, members):
    curve = px.accuracy_rejection_curve(tree_of(members, digits, TEST))
    at = [curve.accuracy[curve.rejected <= share][-1] for share in (0, 0.1, 0.2, 0.4)]
    assert (np.diff(at) >= 0).all()
    assert at[-1] > at[0] + 0.03


@pytest.mark.slow
def test_rotated_digits_teach_more(digits, members):
    x, y = digits
    # By half a turn; a quarter leaves the upper and lower rows empty, which all members
    # take for a sure sign of a four.
    rotated = x[:, ::-1]
    plain, turned = (
        tree_of(members, (images, y), TEST)["uncertainty"]["y_epistemic"].values
        for images in (x, rotated)
    )
    assert turned.mean() > 3 * plain.mean()
    both = np.concatenate([x[TEST], rotated[TEST]]), np.concatenate([y[TEST]] * 2)
    chosen = px.most_uncertain(tree_of(members, both, slice(None)), 100)
    assert (chosen >= len(y[TEST])).mean() > 0.9
