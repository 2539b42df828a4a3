"""Kinds of modules with state, noise and attention, and their passes in NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from crossing_kinds import KEYS, LINE, Kind, inputs, linear
from numpyro.primitives import mutable


class Normed(eqx.Module):
    """Equinox's own state: a batch norm before a line."""

    norm: eqx.nn.BatchNorm
    line: eqx.nn.Linear

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return self.line(x), state


class Spectral(eqx.Module):
    """A line of bounded slope, and a line of what it gives."""

    first: eqx.nn.SpectralNorm
    line: eqx.nn.Linear

    def __call__(self, x, state):
        h, state = self.first(x, state)
        return self.line(jnp.tanh(h)), state


class Noisy(eqx.Module):
    """A convolution over five places, a batch norm, dropout and a readout."""

    conv: eqx.nn.Conv1d
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    readout: eqx.nn.Linear

    def __call__(self, x, state, key):
        h, state = self.norm(self.conv(x), state)
        h = self.drop(jnp.tanh(h), key=key)
        return self.readout(h.reshape(-1)), state


class Attentive(eqx.Module):
    """Attention among three places with a shortcut, a layer norm, and a readout."""

    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    readout: eqx.nn.Linear

    def __call__(self, x):
        h = jax.vmap(self.norm)(x + self.attention(x, x, x))
        return self.readout(h.reshape(-1))


def normed(theta, x, state):
    now, norm = state["now"], NORMED.norm
    count = int(now.get(norm.batch_counter))
    unbiased = 1.0 if count == 0 else 1 - 0.99**count
    mean, variance = (np.asarray(s) / unbiased for s in now.get(norm.batch_state_index))
    x = (x - mean) / np.sqrt(variance + 1e-5)
    return linear(theta, "line", x * theta["norm.weight"] + theta["norm.bias"])


def spectral(theta, x, state):
    u, v = (np.asarray(part) for part in state["now"].get(SPECTRAL.first.uv_index))
    weight = theta["first.layer.weight"]
    h = x @ (weight / (u @ weight @ v)).T + theta["first.layer.bias"]
    return linear(theta, "line", np.tanh(h))


def noisy(theta, x, state):
    weight, bias = theta["conv.weight"], theta["conv.bias"]
    windows = np.stack([x[:, :, i : i + 3] for i in range(3)], 2)
    h = np.einsum("oik,rijk->roj", weight, windows) + bias
    now, norm = state["now"], NOISY.norm
    count = int(now.get(norm.batch_counter))
    unbiased = 1.0 if count == 0 else 1 - 0.99**count
    mean, variance = (np.asarray(s) / unbiased for s in now.get(norm.batch_state_index))
    h = (h - mean[:, None]) / np.sqrt(variance + 1e-5)[:, None]
    h = h * theta["norm.weight"][:, None] + theta["norm.bias"][:, None]
    return linear(theta, "readout", np.tanh(h).reshape(len(x), -1))


def attentive(theta, x, state=None):
    def heads(name):
        of_x = x @ theta[f"attention.{name}_proj.weight"].T
        return of_x.reshape(*x.shape[:2], 2, 2)

    query, key, value = (heads(name) for name in ("query", "key", "value"))
    logits = np.einsum("rshd,rthd->rhst", query, key) / np.sqrt(2.0)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    seen = np.einsum("rhst,rthd->rshd", weights, value).reshape(x.shape)
    h = x + seen @ theta["attention.output_proj.weight"].T
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    h = h * theta["norm.weight"] + theta["norm.bias"]
    return linear(theta, "readout", h.reshape(len(x), -1))


def over_rows(net, x, state, *keys):
    """The values of all rows and the new state; `keys` may hold a key for each row."""
    axes = (0, None, *(None if key is None else 0 for key in keys))
    return jax.vmap(net, axes, (0, None), axis_name="rows")(x, state, *keys)


def of_rows(net, x, state, *keys):
    """How `predict` and `diagnose` are to call the module."""
    return over_rows(net, x, state, *keys)[0]


def keeping(start, keys_of=lambda net, x: ()):
    """A model's call of a module whose state is a mutable site."""

    def call(net, x):
        held = mutable("state", {"now": start})
        f, new = over_rows(net, x, held["now"], *keys_of(net, x))
        held["now"] = jax.lax.stop_gradient(new)
        return f

    return call


def dropout_keys(net, x):
    # Under MCMC nothing gives a model random keys; there the layer is off.
    off = net.drop.inference
    return (None if off else jax.random.split(numpyro.prng_key(), len(x)),)


def moved(start):
    """A state that is not the one at the start."""
    return jax.tree.map(
        lambda a: 1.25 * a + 0.1 if eqx.is_inexact_array(a) else a, start
    )


def make_spectral():
    first = eqx.nn.Linear(2, 2, key=KEYS[1])
    normed = eqx.nn.SpectralNorm(first, "weight", key=KEYS[2])
    return Spectral(normed, eqx.nn.Linear(2, 1, key=KEYS[3]))


def make_noisy():
    conv = eqx.nn.Conv1d(1, 2, 3, key=KEYS[4])
    norm = eqx.nn.BatchNorm(2, "rows", mode="batch")
    return Noisy(conv, norm, eqx.nn.Dropout(0.3), eqx.nn.Linear(6, 1, key=KEYS[5]))


def make_attentive():
    attention = eqx.nn.MultiheadAttention(2, 4, key=KEYS[6])
    return Attentive(attention, eqx.nn.LayerNorm(4), eqx.nn.Linear(12, 1, key=KEYS[7]))


NORMED = Normed(
    eqx.nn.BatchNorm(2, "rows", mode="batch"), eqx.nn.Linear(2, 1, key=KEYS[4])
)
START = eqx.nn.State(NORMED)
SPECTRAL, NOISY = make_spectral(), make_noisy()
SPECTRAL_START, NOISY_START = eqx.nn.State(SPECTRAL), eqx.nn.State(NOISY)
PROJECTIONS = ("query", "key", "value", "output")
NORM = {"norm.weight": 1, "norm.bias": 1}

LAYERS = {
    "batchnorm": Kind(
        eqx.nn.inference_mode(NORMED),
        {"norm.weight": 1, "norm.bias": 1, **LINE},
        normed,
        inputs(6, 2, at=3.0),
        inputs(4, 2, at=3.0),
        call=keeping(START),
        inputs=lambda x, state: (x, state["now"]),
        called=of_rows,
        state={"now": START},
        training=NORMED,
        around_one=("norm.weight",),
    ),
    "spectral": Kind(
        eqx.nn.inference_mode(SPECTRAL),
        {"first.layer.weight": 2, "first.layer.bias": 2, **LINE},
        spectral,
        inputs(6, 2),
        inputs(4, 2),
        call=keeping(SPECTRAL_START),
        inputs=lambda x, state: (x, state["now"]),
        called=of_rows,
        state={"now": SPECTRAL_START},
        training=SPECTRAL,
    ),
    "noisy": Kind(
        eqx.nn.inference_mode(NOISY),
        {
            **{"conv.weight": 3, "conv.bias": 3, **NORM},
            **{"readout.weight": 6, "readout.bias": 6},
        },
        noisy,
        inputs(6, 1, 5),
        inputs(4, 1, 5),
        call=keeping(NOISY_START, dropout_keys),
        inputs=lambda x, state: (x, state["now"], None),
        called=of_rows,
        state={"now": NOISY_START},
        training=NOISY,
        around_one=("norm.weight",),
    ),
    "attention": Kind(
        make_attentive(),
        {
            **{f"attention.{name}_proj.weight": 4 for name in PROJECTIONS},
            **{**NORM, "readout.weight": 12, "readout.bias": 12},
        },
        attentive,
        inputs(6, 3, 4),
        inputs(4, 3, 4),
        around_one=("norm.weight",),
    ),
}
