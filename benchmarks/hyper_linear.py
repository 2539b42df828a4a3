"""HyperLinear against building its weights row by row, and against one plain product.

Every row has a context of its own. The plain product has the FLOPs of the generated
layers: (N, K C_in) by (K C_in, C); with its gradient it is the three such products.
"""

import functools
import gc

import jax
import jax.numpy as jnp
from side_by_side import Quartiles, ratio, report, take_turns, temporary_mebibytes

from pyrox_ppl.nn import HyperLinear

SIZES = [
    (4, 32, 32, 1024),
    (8, 128, 128, 4096),
    (16, 256, 256, 4096),
    (64, 256, 256, 2048),
    (256, 64, 64, 2048),
]
# A round of the larger sizes takes seconds.
ROUNDS = {4: 25, 8: 9, 16: 5, 64: 5, 256: 9}


def ours(layer, z, x):
    return layer(x, z)


def built(layer, z, x):
    """The obvious: the weights of every row, then a product a row."""
    generated = z @ layer.generator.weight.T + layer.generator.bias[None]
    split = layer.target_out * layer.target_in
    weights = generated[:, :split].reshape(-1, layer.target_out, layer.target_in)
    return jnp.einsum("noi,ni->no", weights, x) + generated[:, split:]


def one_einsum(layer, z, x):
    """The strong one-liner: an einsum that picks its own order."""
    split = layer.target_out * layer.target_in
    weight, bias = layer.generator.weight, layer.generator.bias
    tensor = weight[:split].reshape(layer.target_out, layer.target_in, -1)
    base = bias[:split].reshape(layer.target_out, layer.target_in)
    shift = z @ weight[split:].T + bias[None, split:]
    y = jnp.einsum("oik,nk,ni->no", tensor, z, x, optimize="optimal")
    return y + x @ base.T + shift


def product(a, b):
    return a @ b


def products(a, b, g):
    return a @ b, a.T @ g, g @ b.T


def with_gradient(function):
    """The value and the gradient by everything."""

    def loss(layer, z, x, weights):
        return jnp.sum(weights * function(layer, z, x))

    return jax.value_and_grad(loss, (0, 1, 2))


def measure(context, width, out, rows):
    keys = jax.random.split(jax.random.key(0), 6)
    layer = HyperLinear.init(width, out, context, key=keys[0])
    z, x, g = (
        jax.random.normal(key, (rows, size))
        for key, size in zip(keys[1:4], (context, width, out), strict=True)
    )
    a = jax.random.normal(keys[4], (rows, context * width))
    b = jax.random.normal(keys[5], (context * width, out))
    methods = {"ours": ours, "built": built, "einsum": one_einsum}
    for title, arguments, transform, plain in (
        ("forward", (layer, z, x), lambda f: f, (product, a, b)),
        ("with gradient", (layer, z, x, g), with_gradient, (products, a, b, g)),
    ):
        calls = {
            name: functools.partial(jax.jit(transform(method)), *arguments)
            for name, method in methods.items()
        }
        calls["product"] = functools.partial(jax.jit(plain[0]), *plain[1:])
        seconds = take_turns(calls, rounds=ROUNDS[context])
        memory = {
            f"{name} / MiB": round(
                temporary_mebibytes(transform(method), *arguments), 1
            )
            for name, method in methods.items()
        }
        yield {
            "K, C_in, C, N": f"{context}, {width}, {out}, {rows}",
            "pass": title,
            "ours / ms": Quartiles.of(1e3 * seconds["ours"]),
            "built / ours": ratio(seconds, "built", "ours"),
            "einsum / ours": ratio(seconds, "einsum", "ours"),
            "ours / product": ratio(seconds, "ours", "product"),
            **memory,
        }


if __name__ == "__main__":
    rows = []
    for size in SIZES:
        rows.extend(measure(*size))
        gc.collect()
    report("hyper_linear", rows)
