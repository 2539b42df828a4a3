"""Conditional fields against the obvious implementation, and against jnp by hand.

*Rows*: a function of one row, vmapped over all of them, each with its own copy of the
context: what one writes first. *By hand*: the same mathematics over the whole batch, in
plain jnp with `jnp.sin`, a context generated once. For the SIREN there is its network
with ReLU for the sine as well. `rows / ours` is how many times the rows take; `ours /
by hand` and `ours / ReLU` are the other way round.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from side_by_side import ratio, report, take_turns, temporary_mebibytes

from pyrox_ppl.nn import (
    SIREN,
    ConditionedINR,
    ConditionedRFFNet,
    FiLM,
    HyperFourierFeatures,
    HyperSIREN,
)

CONTEXTS, POINTS, IN, K, LATENT = 16, 256, 2, 8, 8
WIDTH, DEPTH, N = 64, 4, 256
OMEGAS = {"first_omega": 10.0, "hidden_omega": 10.0}
KEYS = jax.random.split(jax.random.key(0), 5)


class Field(NamedTuple):
    """A module, its arrays, and the same field written out for them."""

    module: eqx.Module
    weights: Any
    row: Callable
    by_hand: Callable
    relu: Callable | None = None


def pair(layer):
    return layer.weight, layer.bias


def encode_row(net, z):
    (w, b), (v, c) = net
    return v @ jnp.tanh(w @ z + b) + c


def encode(net, z):
    (w, b), (v, c) = net
    return jnp.tanh(z @ w.T + b) @ v.T + c


def encoder(size):
    net = eqx.nn.MLP(K, size, 32, 1, activation=jnp.tanh, key=KEYS[0])
    return net, [pair(layer) for layer in net.layers]


def siren(width=128, depth=5):
    module = SIREN.init(IN, width, 1, depth=depth, key=KEYS[1], **OMEGAS)

    def network(activation):
        def by_hand(weights, x):
            *hidden, (v, c) = weights
            for w, b in hidden:
                x = activation(x @ w.T + b)
            return x @ v.T + c

        return by_hand

    def row(weights, x):
        *hidden, (v, c) = weights
        for w, b in hidden:
            x = jnp.sin(10.0 * (w @ x + b))
        return v @ x + c

    weights = [pair(layer) for layer in module.layers]
    by_hand = network(lambda x: jnp.sin(10.0 * x))
    return Field(module, weights, row, by_hand, network(jax.nn.relu))


def film_siren():
    inner = SIREN.init(IN, WIDTH, 1, depth=DEPTH, key=KEYS[1], **OMEGAS)
    film = {"conditioner_cls": FiLM, "cond_dim": K, "key": KEYS[2]}
    module = ConditionedINR.init(inner, **film)
    weights = (
        [pair(layer) for layer in inner.layers],
        [pair(conditioner.generator) for conditioner in module.conditioners],
    )

    def row(weights, x, z):
        (*hidden, (v, c)), films = weights
        for (w, b), (g, s) in zip(hidden, films, strict=True):
            shift, raw = jnp.split(g @ z + s, 2)
            x = (1.0 + jnp.tanh(raw)) * jnp.sin(10.0 * (w @ x + b)) + shift
        return v @ x + c

    def by_hand(weights, x, z):
        (*hidden, (v, c)), films = weights
        for (w, b), (g, s) in zip(hidden, films, strict=True):
            shift, raw = jnp.split(z @ g.T + s, 2, axis=-1)
            x = (1.0 + jnp.tanh(raw)) * jnp.sin(10.0 * (x @ w.T + b)) + shift
        return x @ v.T + c

    return Field(module, weights, row, by_hand)


def hyper_siren():
    net, encoding = encoder(LATENT)
    sizes = {"depth": DEPTH, "cond_dim": LATENT, "parameter_net": net}
    module = HyperSIREN(IN, WIDTH, 1, **sizes, key=KEYS[2], **OMEGAS)
    weights = (encoding, [pair(layer.generator) for layer in module.hyper_layers])
    shapes = [(WIDTH, IN), *[(WIDTH, WIDTH)] * (DEPTH - 2), (1, WIDTH)]

    def layers(generated):
        """Each flat output of a generator as a matrix and a vector."""
        for flat, shape in zip(generated, shapes, strict=True):
            split = shape[0] * shape[1]
            yield flat[..., :split].reshape(*flat.shape[:-1], *shape), flat[..., split:]

    def row(weights, x, z):
        latent = encode_row(weights[0], z)
        *hidden, (v, c) = layers([g @ latent + s for g, s in weights[1]])
        for w, b in hidden:
            x = jnp.sin(10.0 * (w @ x + b))
        return v @ x + c

    def apply(w, b, x):
        if w.ndim == 2:
            return x @ w.T + b
        return jnp.einsum("...oi,...i->...o", w, x) + b

    def by_hand(weights, x, z):
        latent = encode(weights[0], z)
        *hidden, readout = layers([latent @ g.T + s for g, s in weights[1]])
        for w, b in hidden:
            x = jnp.sin(10.0 * apply(w, b, x))
        return apply(*readout, x)

    return Field(module, weights, row, by_hand)


def hyper_rff():
    net, encoding = encoder(IN * N + N + 1)
    sizes = {"in_features": IN, "n_features": N, "cond_dim": K}
    feat = HyperFourierFeatures.init(parameter_net=net, **sizes)
    module = ConditionedRFFNet.init(feat=feat, out_features=1, key=KEYS[3])
    weights = (encoding, pair(module.readout))

    def frequencies(flat):
        w = flat[..., : IN * N].reshape(*flat.shape[:-1], IN, N)
        return w / jnp.exp(flat[..., -1:, None]), flat[..., IN * N : -1]

    def read_out(readout, phase):
        both = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)
        return (both / jnp.sqrt(N)) @ readout[0].T + readout[1]

    def row(weights, x, z):
        w, b = frequencies(encode_row(weights[0], z))
        return read_out(weights[1], x @ w + b)

    def by_hand(weights, x, z):
        w, b = frequencies(encode(weights[0], z))
        return read_out(weights[1], jnp.einsum("...i,...in->...n", x, w) + b)

    return Field(module, weights, row, by_hand)


def over_rows(row):
    """The row function over every row, each with a copy of its context."""

    def field(weights, x, *context):
        flat = x.reshape(-1, IN)
        copies = [
            jnp.broadcast_to(z, (*x.shape[:-1], K)).reshape(-1, K) for z in context
        ]
        out = jax.vmap(lambda *one: row(weights, *one))(flat, *copies)
        return out.reshape(*x.shape[:-1], -1)

    return field


def loss_of(field):
    """The mean square, with its gradient in all weights."""
    return jax.value_and_grad(
        lambda weights, *args: jnp.mean(field(weights, *args) ** 2)
    )


def compare(name, layout, field, args, rounds):
    """A row of the table for the forward, and one for forward and gradient."""
    arrays, static = eqx.partition(field.module, eqx.is_inexact_array)
    contestants = {
        "ours": (lambda arrays, *a: eqx.combine(arrays, static)(*a), arrays),
        "rows": (over_rows(field.row), field.weights),
        "by hand": (field.by_hand, field.weights),
    }
    if field.relu is not None:
        contestants["ReLU"] = (field.relu, field.weights)
    results = {key: f(w, *args) for key, (f, w) in contestants.items()}
    for other in ("rows", "by hand"):
        difference = jnp.abs(results["ours"] - results[other]).max()
        if not difference < 1e-3:
            raise ValueError(f"{name}, {layout}: {other} differs by {difference}.")
    for what, wrap in (("forward", lambda f: f), ("+ gradient", loss_of)):
        runs, memory = {}, {}
        for key, (function, weights) in contestants.items():
            wrapped = wrap(function)
            compiled = jax.jit(wrapped)
            runs[key] = lambda c=compiled, w=weights: c(w, *args)
            memory[key] = temporary_mebibytes(wrapped, weights, *args)
        seconds = take_turns(runs, rounds=rounds)
        row = {
            "field": name,
            "contexts": layout,
            "pass": what,
            "ms": f"{1e3 * float(jnp.median(seconds['ours'])):.1f}",
            "rows / ours": ratio(seconds, "rows", "ours"),
            "ours / by hand": ratio(seconds, "ours", "by hand"),
            "MiB": f"{memory['ours']:.1f}",
            "MiB rows": f"{memory['rows']:.1f}",
            "MiB by hand": f"{memory['by hand']:.1f}",
        }
        if field.relu is not None:
            row["ours / ReLU"] = ratio(seconds, "ours", "ReLU")
        yield row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    rows = CONTEXTS * POINTS
    x = jax.random.uniform(KEYS[4], (rows, IN), minval=-1.0)
    z = jax.random.normal(KEYS[4], (rows, K))
    layouts = {
        f"{CONTEXTS} x {POINTS} points": (
            x.reshape(CONTEXTS, POINTS, IN),
            z[:CONTEXTS, None],
        ),
        f"1 x {rows} points": (x, z[0]),
        f"{rows} x 1 point": (x, z),
    }
    fields = {
        "FiLM-SIREN": film_siren,
        "HyperSIREN": hyper_siren,
        "Hyper-RFF": hyper_rff,
    }
    table = list(compare("SIREN", f"none, {rows} points", siren(), (x,), rounds))
    for name, make in fields.items():
        field = make()
        for layout, args in layouts.items():
            table += compare(name, layout, field, args, rounds)
    report("neural_fields", table)


if __name__ == "__main__":
    main()
