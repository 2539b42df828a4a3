"""call=: what predict and diagnose evaluate in place of the module itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from models import WEIGHT, Z, make_film

import pyrox_ppl as px

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(3.0, 2.0, size=(6, 2)))
MANY = np.float32(RNG.normal(3.0, 2.0, size=(600, 2)))
W = np.float32(RNG.normal(size=(8, 3, 2)))
DRAWS = {"net.line.weight": W, "net.line.bias": np.zeros((8, 3), np.float32)}


class Net(eqx.Module):
    """A batch norm, dropout and a line: logits of three classes."""

    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    line: eqx.nn.Linear

    def __init__(self):
        self.norm = eqx.nn.BatchNorm(2, "rows", mode="ema")
        self.drop = eqx.nn.Dropout(0.5)
        self.line = eqx.nn.Linear(2, 3, key=KEY)

    def __call__(self, x, state, key=None):
        x, state = self.norm(x, state)
        return self.line(self.drop(x, key=key)), state


NET, EMPTY = eqx.nn.make_with_state(Net)()
MEAN, VARIANCE = jnp.array([3.0, 2.0]), jnp.array([4.0, 0.25])
STATE = EMPTY.set(NET.norm.ema_first_time_index, jnp.array(False)).set(
    NET.norm.ema_state_index, (MEAN, VARIANCE)
)


def at_rest(net, x, state):
    net = eqx.nn.inference_mode(net)
    over_rows = jax.vmap(net, (0, None), (0, None), axis_name="rows")
    return over_rows(x, state)[0]


def noisy(net, x, state, key):
    net = eqx.tree_at(lambda n: n.norm.inference, net, True)
    keys = jax.random.split(key, len(x))
    return jax.vmap(net, (0, None, 0), (0, None), axis_name="rows")(x, state, keys)[0]


def training(net, x, state):
    net = eqx.tree_at(lambda n: n.drop.inference, net, True)
    return jax.vmap(net, (0, None), (0, None), axis_name="rows")(x, state)[0]


def logits(x, mean=MEAN, variance=VARIANCE):
    x = (x - np.asarray(mean)) / np.sqrt(np.asarray(variance) + 1e-5)
    return np.einsum("skc,nc->snk", W, x)


def predict(*inputs, call, draws=DRAWS, **kwargs):
    return px.predict(NET, draws, *inputs, call=call, name="net", **kwargs)


def close(prediction, values):
    np.testing.assert_allclose(prediction.mean, values.mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(prediction.std, values.std(0), rtol=1e-3, atol=1e-3)


def test_a_state_and_inference_mode():
    close(predict(X, STATE, call=at_rest), logits(X))


def test_a_function_on_top_and_one_output_of_several():
    def probabilities(net, x, state, *, temperature):
        return jax.nn.softmax(at_rest(net, x, state) / temperature)

    by_hand = np.exp(logits(X) / 2.0)
    by_hand /= by_hand.sum(-1, keepdims=True)
    close(predict(X, STATE, call=probabilities, temperature=2.0), by_hand)
    close(predict(X, STATE, call=lambda *a: at_rest(*a)[:, 1]), logits(X)[..., 1])
    largest = predict(MANY, STATE, call=lambda *a: at_rest(*a).max())
    close(largest, logits(MANY).max((1, 2)))


def test_many_points_in_blocks():
    close(predict(MANY, STATE, call=at_rest, batch_size=64), logits(MANY))


@pytest.mark.parametrize("x", [X, MANY], ids=["few", "many"])
def test_an_array_of_all_points_beside_the_inputs(x):
    group = np.arange(len(x)) % 3

    def scaled(net, x, state, factor=group):
        return jax.vmap(jnp.multiply)(at_rest(net, x, state), factor)

    close(predict(x, STATE, group, call=scaled), logits(x) * group[:, None])
    close(predict(x, STATE, call=scaled), logits(x) * group[:, None])


def test_statistics_of_a_batch_are_those_of_all_points():
    variance = 0.99 * np.asarray(VARIANCE) + 0.01 * MANY.var(0)
    mean = 0.99 * np.asarray(MEAN) + 0.01 * MANY.mean(0)
    close(predict(MANY, STATE, call=training), logits(MANY, mean, variance))
    with pytest.raises(ValueError, match="depend on the other points"):
        predict(MANY, STATE, call=training, batch_size=64)


def test_every_draw_and_row_has_its_own_dropout_and_again_the_same():
    number, x = 400, np.float32(MEAN + 2.0 * np.sqrt(VARIANCE)) * np.ones((3, 1))
    same = {
        "net.line.weight": np.ones((number, 3, 2), np.float32),
        "net.line.bias": np.zeros((number, 3), np.float32),
    }
    ours = predict(np.float32(x), STATE, KEY, call=noisy, draws=same)
    # Each of two inputs of 2 is 0 or 4: a sum of two coins.
    np.testing.assert_allclose(ours.mean, 4.0, atol=5 * np.sqrt(8.0 / number))
    np.testing.assert_allclose(ours.std, np.sqrt(8.0), rtol=0.15)
    assert len(np.unique(ours.mean[:, 0])) > 1
    again = predict(np.float32(x), STATE, KEY, call=noisy, draws=same)
    np.testing.assert_array_equal(again.mean, ours.mean)
    other = predict(np.float32(x), STATE, jax.random.key(1), call=noisy, draws=same)
    assert not np.array_equal(other.mean, ours.mean)


def test_draws_differ_by_their_keys_where_no_parameter_was_drawn():
    learned = {"net.line.weight": np.ones((3, 2), np.float32)}
    draws = {"noise": np.ones(100)}
    ours = predict(X, STATE, KEY, call=noisy, draws=draws, params=learned)
    assert ours.std.min() > 0.0


def test_a_key_of_the_module_is_a_constant_as_in_the_model():
    class Held(eqx.Module):
        weight: jax.Array
        key: jax.Array

        def __call__(self, x):
            return self.weight * x * jax.random.bernoulli(self.key, 0.5, x.shape)

    held = Held(jnp.ones(2), KEY)

    def model(x):
        with px.bayesianize():
            net = px.bind(held, "net")
        numpyro.deterministic("f", jax.vmap(net)(x))

    draws = {"net.weight": W[:, 0]}
    of_model = px.predict(model, draws, X)["f"]
    of_module = px.predict(held, draws, X, name="net")
    np.testing.assert_allclose(of_module.std, of_model.std, rtol=1e-5)


def test_what_the_function_closes_over_may_change():
    shift = {"by": 0.0}

    def shifted(net, x, state):
        return at_rest(net, x, state) + shift["by"]

    before = predict(X, STATE, call=shifted).mean
    shift["by"] = 5.0
    after = predict(X, STATE, call=shifted).mean
    np.testing.assert_allclose(after, before + 5.0, rtol=1e-5)


def test_a_state_is_never_cut_into_points():
    class Table(eqx.Module):
        weight: jax.Array
        index: eqx.nn.StateIndex

        def __call__(self, x, state):
            return self.weight * (x + state.get(self.index).sum())

    table, state = eqx.nn.make_with_state(Table)(
        jnp.ones(2), eqx.nn.StateIndex(jnp.arange(12.0).reshape(6, 2))
    )
    draws = {"net.weight": W[:, 0]}
    by_hand = W[:, :1] * (X + 66.0)[None]
    close(px.predict(table, draws, X, state, name="net"), by_hand)
    mapped = jax.vmap(lambda net, x, s: net(x, s), (None, 0, None))
    close(px.predict(table, draws, X, state, name="net", call=mapped), by_hand)


def test_members_of_a_plate():
    line = eqx.nn.Linear(2, 3, key=KEY)
    draws = {"net.weight": np.stack([W, 2.0 * W], 1)}

    def members(nets, x):
        return eqx.filter_vmap(lambda net: jax.vmap(net)(x))(nets)

    given = {"name": "net", "call": members, "batch_ndims": 1}
    ours = px.predict(line, draws, X, **given)
    of_weights = np.einsum("sgkc,nc->sgnk", draws["net.weight"], X)
    close(ours, of_weights + np.asarray(line.bias))
    learned = {"net.bias": np.float32([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])}
    ours = px.predict(line, draws, X, **given, params=learned)
    close(ours, of_weights + learned["net.bias"][:, None])
    with pytest.raises(ValueError, match=r"if it is a plate, say how.*call="):
        px.predict(line, draws, X, name="net", batch_ndims=1)


def test_members_of_a_plate_with_a_state_each():
    draws = {
        "net.0.line.weight": np.stack([W, 2.0 * W], 1),
        "net.0.line.bias": np.zeros((8, 2, 3), np.float32),
    }

    def members(pair, x):
        return eqx.filter_vmap(lambda net, state: at_rest(net, x, state))(*pair)

    ours = px.predict((NET, STATE), draws, X, name="net", call=members, batch_ndims=1)
    close(ours, np.stack([logits(X), 2.0 * logits(X)], 1))


def test_a_module_of_the_package_is_called_so_as_well():
    film = make_film()
    draws = {WEIGHT: RNG.normal(size=(8, 6, 2)).astype(np.float32)}
    rows = jnp.ones((5, 3))
    ours = px.predict(film, draws, rows, Z, call=lambda net, h, z: net(h, z).sum(-1))
    each = [px.module_from_draw(film, draws, i)(rows, Z).sum(-1) for i in range(8)]
    close(ours, np.stack(each))


def test_modules_that_were_bound_together():
    pair = (eqx.nn.Linear(2, 3, use_bias=False, key=KEY), NET.line)
    draws = {"net.0.weight": W}
    ours = px.predict(
        pair, draws, X, name="net", call=lambda nets, x: jax.vmap(nets[0])(x)
    )
    close(ours, np.einsum("skc,nc->snk", W, X))
    with pytest.raises(TypeError, match=r"got tuple.*call=lambda modules"):
        px.predict(pair, draws, X, name="net")


def test_functions_are_diagnosed_as_they_are_predicted():
    chains = {
        name: value.reshape(2, 4, *value.shape[1:]) for name, value in DRAWS.items()
    }
    tree = px.to_datatree(chains, batch_ndims=2)
    found = px.diagnose(tree, NET, X, STATE, call=at_rest, name="net").functions
    std = predict(X, STATE, call=at_rest).std
    np.testing.assert_allclose(found.std, std.ravel(), rtol=1e-4)
    with pytest.raises(ValueError, match="need the module"):
        px.diagnose(tree, call=at_rest)


def model(x):
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(2))


@pytest.mark.parametrize(
    ("run", "error", "match"),
    [
        (lambda: px.predict(model, DRAWS, X, call=at_rest), ValueError, "is a model"),
        (lambda: predict(X, call=at_rest), TypeError, "`call` does not take.*'state'"),
        (
            lambda: predict(X, STATE, call=lambda net, x, s: (x, s)),
            ValueError,
            r"`call` returns.*choose one",
        ),
        (
            lambda: px.predict(NET, DRAWS, X, name="net"),
            TypeError,
            r"Net cannot be called with 1 inputs.*`call` is a function",
        ),
        (
            lambda: predict(X, STATE, call=at_rest, uncertainty=True),
            ValueError,
            "a module has no noise",
        ),
    ],
)
def test_what_cannot_be_called_says_what_to_give(run, error, match):
    with pytest.raises(error, match=f"(?s){match}"):
        run()


NEEDS_A_KEY = eqx.nn.Sequential([NET.drop, NET.line])


@pytest.mark.parametrize(
    ("module", "draws", "inputs", "error"),
    [
        (NET, DRAWS, (X, STATE), NameError),
        (NEEDS_A_KEY, {"net.layers.1.weight": W}, (X,), RuntimeError),
    ],
    ids=["axis", "key"],
)
def test_what_goes_wrong_inside_points_to_call(module, draws, inputs, error):
    with pytest.raises(error) as raised:
        px.predict(module, draws, *inputs, name="net")
    assert "say how to call it: call=" in raised.value.__notes__[-1]
