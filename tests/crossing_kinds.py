"""Kinds of modules, how a model calls them, and their forward passes in NumPy."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.primitives import mutable
from scipy import stats
from scipy.special import expit

from pyrox_ppl.nn import SIREN, ConditionedINR, FiLM, HyperSIREN

KEYS = jax.random.split(jax.random.key(0), 8)
STEP = 0.3
Z = jnp.array([0.5, 1.0])


class Convolution(eqx.Module):
    """A convolution over five places, and a readout of what it found."""

    conv: eqx.nn.Conv1d
    readout: eqx.nn.Linear

    def __call__(self, x):
        return self.readout(jnp.tanh(self.conv(x)).reshape(-1))


class Recurrent(eqx.Module):
    """A GRU over a sequence; its carry is float32, whatever comes in."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __call__(self, sequence):
        start = jnp.zeros(2, jnp.float32)
        last, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, sequence)
        return self.readout(last)


class Tied(eqx.Module):
    """An autoencoder of which one array is the way in and the way out."""

    dec: jax.Array
    enc: jax.Array

    def __call__(self, x):
        return self.dec.T @ jnp.tanh(self.enc @ x)


class Centred(eqx.Module):
    """A line through inputs less their running mean, which the caller keeps."""

    line: eqx.nn.Linear

    def __call__(self, x, mean):
        return self.line(x - mean)


def linear(theta, name, x):
    return x @ theta[f"{name}.weight"].T + theta[f"{name}.bias"]


def mlp(theta, x, state=None):
    return linear(theta, "layers.1", np.tanh(linear(theta, "layers.0", x)))


def members(theta, x, state=None):
    each = [{k: v[i, 0] for k, v in theta.items()} for i in range(2)]
    return np.stack([mlp(one, x) for one in each])


def convolution(theta, x, state=None):
    weight, bias = theta["conv.weight"], theta["conv.bias"]
    windows = np.stack([x[:, :, i : i + 3] for i in range(3)], 2)
    hidden = np.tanh(np.einsum("oik,rijk->roj", weight, windows) + bias)
    return linear(theta, "readout", hidden.reshape(len(x), -1))


def recurrent(theta, x, state=None):
    h = np.zeros((len(x), 2))
    for t in range(x.shape[1]):
        of_x = x[:, t] @ theta["cell.weight_ih"].T + theta["cell.bias"]
        of_h = h @ theta["cell.weight_hh"].T
        reset = expit(of_x[:, :2] + of_h[:, :2])
        keep = expit(of_x[:, 2:4] + of_h[:, 2:4])
        new = np.tanh(of_x[:, 4:] + reset * (of_h[:, 4:] + theta["cell.bias_n"]))
        h = new + keep * (h - new)
    return linear(theta, "readout", h)


def tied(theta, x, state=None):
    return np.tanh(x @ theta["dec"].T) @ theta["dec"]


def field(theta, x, state=None):
    raw = linear(theta, "conditioners.0.generator", np.asarray(Z, np.float64))
    h = np.sin(3.0 * linear(theta, "inner.layers.0", x))
    return linear(theta, "inner.layers.1", (1 + np.tanh(raw[3:])) * h + raw[:3])


def preactivated(theta, x, state=None):
    raw = linear(theta, "conditioners.0.generator", np.asarray(Z, np.float64))
    taken = 3.0 * linear(theta, "inner.layers.0", x)
    return linear(
        theta, "inner.layers.1", np.sin((1 + np.tanh(raw[3:])) * taken + raw[:3])
    )


def subspace(theta, x, state=None):
    readout = linear(theta, "hyper_layers.0.generator", np.asarray(Z, np.float64))
    return np.sin(3.0 * linear(theta, "trunk.0", x)) @ readout[:3, None] + readout[3]


def centred(theta, x, state):
    return linear(theta, "line", x - np.asarray(state["mean"], np.float64))


def of_members(nets, x):
    return eqx.filter_vmap(lambda net: jax.vmap(net)(x))(nets)


def keeping_the_mean(net, x):
    state = mutable("state", {"mean": jnp.zeros(2)})
    f = jax.vmap(net, (0, None))(x, state["mean"])
    state["mean"] = 0.9 * state["mean"] + 0.1 * x.mean(0)
    return f


def walking(net, x):
    """A random walk that the net pulls: its places are latent, drawn in a scan."""

    def step(z, push):
        z = numpyro.sample("z", dist.Normal(jnp.tanh(net(z)) + push, STEP).to_event(1))
        return z, z

    return scan(step, jnp.zeros(1), x)[1]


def walk_prior(draw, theta, x):
    """The log prior of the walk's places, by site."""
    before = np.concatenate([np.zeros((1, 1)), draw["z"][:-1]])
    mean = np.tanh(linear({f"l.{k}": v for k, v in theta.items()}, "l", before)) + x
    return {"z": stats.norm.logpdf(draw["z"], mean, STEP).sum()}


def make_mlp():
    return eqx.nn.MLP(2, 1, 3, 1, activation=jnp.tanh, key=KEYS[0])


def make_tied():
    weight = 0.5 * jax.random.normal(KEYS[1], (3, 2))
    return Tied(weight, weight)


def make_field(mode="feature"):
    inner = SIREN.init(2, 3, 1, depth=2, key=KEYS[2], first_omega=3.0)
    film = {"conditioner_cls": FiLM, "cond_dim": 2, "key": KEYS[3]}
    return ConditionedINR.init(inner, mode=mode, **film)


def make_subspace():
    latent = {"cond_dim": 2, "parameter_net": jnp.asarray, "parameterized": "last"}
    return HyperSIREN(2, 3, 1, depth=2, **latent, key=KEYS[3], first_omega=3.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """A module in a model.

    Attributes:
        module: The module with its stored values.
        fan_in: The paths of its parameters, with what each sums over.
        forward: The values of ``theta`` by path, the inputs, the state -> f, in NumPy.
        x: Inputs.
        new_x: Others, of another number of rows where the model allows that.
        call: What the model does with the bound module and the inputs.
        inputs: The inputs and the state -> what the module itself is called with; None
            where it cannot be called alone.
        called: How it is called with them, as ``call=`` of `predict` says; None where
            the module itself takes them.
        learned: The paths that are learned.
        groups: The number of members of the plate that the module is bound on, or 0.
        state: The state at the start, as ``mutable`` has it.
        training: The module to train with, if it is another.
        log_prior: Of latent sites that are no parameters, by hand.
        around_one: The paths of the scales of normalisation layers.
    """

    module: Any
    fan_in: dict[str, int]
    forward: Callable
    x: np.ndarray
    new_x: np.ndarray
    call: Callable = lambda net, x: jax.vmap(net)(x)
    inputs: Callable | None = lambda x, state: (x,)
    called: Callable | None = None
    learned: tuple[str, ...] = ()
    groups: int = 0
    state: Any = None
    training: Any = None
    log_prior: Callable | None = None
    around_one: tuple[str, ...] = ()


def inputs(*shape, at=0.0):
    x = np.linspace(-1.0, 1.0, int(np.prod(shape))).reshape(shape)
    return np.float32(at + np.sin(3.0 * x))


MLP = {"layers.0.weight": 2, "layers.0.bias": 2, "layers.1.weight": 3}
MLP |= {"layers.1.bias": 3}
READOUT = {"readout.weight": 6, "readout.bias": 6}
GRU = {"cell.weight_ih": 1, "cell.weight_hh": 2, "cell.bias": 1, "cell.bias_n": 1}
GENERATOR, LAST = "conditioners.0.generator", "hyper_layers.0.generator"
INNER = {"inner.layers.0.weight": 2, "inner.layers.0.bias": 2}
INNER |= {"inner.layers.1.weight": 3, "inner.layers.1.bias": 3}
TRUNK = {"trunk.0.weight": 2, "trunk.0.bias": 2}
LINE = {"line.weight": 2, "line.bias": 2}
X, NEW_X = inputs(6, 2), inputs(4, 2)

KINDS = {
    "mlp": Kind(make_mlp(), MLP, mlp, X, NEW_X),
    "plate": Kind(
        make_mlp(), MLP, members, X, NEW_X, call=of_members, called=of_members, groups=2
    ),
    "ties": Kind(make_tied(), {"dec": 2}, tied, X, NEW_X),
    "learned": Kind(
        make_field(),
        {f"{GENERATOR}.weight": 2, f"{GENERATOR}.bias": 2, **INNER},
        field,
        X,
        NEW_X,
        call=lambda net, x: net(x, Z),
        inputs=lambda x, state: (x, Z),
        learned=tuple(INNER),
    ),
    "preactivation": Kind(
        make_field("preactivation"),
        {f"{GENERATOR}.weight": 2, f"{GENERATOR}.bias": 2, **INNER},
        preactivated,
        X,
        NEW_X,
        call=lambda net, x: net(x, Z),
        inputs=lambda x, state: (x, Z),
        learned=tuple(INNER),
    ),
    "subspace": Kind(
        make_subspace(),
        {f"{LAST}.weight": 2, f"{LAST}.bias": 2, **TRUNK},
        subspace,
        X,
        NEW_X,
        call=lambda net, x: net(x, Z),
        inputs=lambda x, state: (x, Z),
        learned=tuple(TRUNK),
    ),
    "state": Kind(
        Centred(eqx.nn.Linear(2, 1, key=KEYS[5])),
        LINE,
        centred,
        inputs(6, 2, at=3.0),
        inputs(4, 2, at=3.0),
        call=keeping_the_mean,
        inputs=lambda x, state: (x, state["mean"]),
        state={"mean": jnp.zeros(2)},
    ),
    "convolution": Kind(
        Convolution(
            eqx.nn.Conv1d(1, 2, 3, key=KEYS[6]), eqx.nn.Linear(6, 1, key=KEYS[7])
        ),
        {"conv.weight": 3, "conv.bias": 3, **READOUT},
        convolution,
        inputs(6, 1, 5),
        inputs(4, 1, 5),
    ),
    "gru": Kind(
        Recurrent(eqx.nn.GRUCell(1, 2, key=KEYS[6]), eqx.nn.Linear(2, 1, key=KEYS[7])),
        GRU | {"readout.weight": 2, "readout.bias": 2},
        recurrent,
        inputs(6, 3, 1),
        inputs(4, 3, 1),
    ),
    "walk": Kind(
        eqx.nn.Linear(1, 1, key=KEYS[5]),
        {"weight": 1, "bias": 1},
        lambda theta, x, state: theta["z"],
        inputs(5, 1),
        inputs(5, 1, at=0.2),
        call=walking,
        inputs=None,
        log_prior=walk_prior,
    ),
}
