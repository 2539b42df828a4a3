"""HyperLinear against building its weights row by row, and against one plain product.

Every row has a context of its own. The plain product has the FLOPs of the generated
layers: (N, K C_in) by (K C_in, C); with its gradient it is the three such products.
The best order is the fastest of the three orders of the sum, each forced, and of an
einsum that picks its own. A second table has contexts that many points share.

    python benchmarks/hyper_linear.py --size 64,1024,1024,65536 --dtype bfloat16
"""

import argparse
import functools
import gc
import typing
from unittest import mock

import jax
import jax.numpy as jnp
from side_by_side import Quartiles, ratio, report, take_turns, temporary_mebibytes

from pyrox_ppl.nn import HyperLinear, _contract

SIZES = [
    (4, 32, 32, 1024),
    (8, 128, 128, 4096),
    (16, 256, 256, 4096),
    (64, 256, 256, 2048),
    (256, 64, 64, 2048),
]
# Above so many entries the weights of all rows are not built: they would not fit.
MOST_WEIGHTS = 2**31


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


def forced(order):
    """Ours, the sum taken in a given order."""

    def method(layer, z, x):
        with mock.patch.object(_contract, "cheapest_order", return_value=order):
            return layer(x, z)

    return method


def inputs(context, width, out, batches, dtype):
    """A layer, contexts, features, and weights for the sum of the results."""
    keys = jax.random.split(jax.random.key(0), 4)
    layer = HyperLinear.init(width, out, context, key=keys[0])
    cast = functools.partial(jax.tree.map, lambda leaf: leaf.astype(dtype))
    of_z, of_x = batches
    shapes = [(*of_z, context), (*of_x, width), (*of_x, out)]
    arrays = [
        jax.random.normal(key, shape)
        for key, shape in zip(keys[1:], shapes, strict=True)
    ]
    return cast(layer), *cast(arrays)


def rounds_for(flops):
    """Fewer rounds where one takes seconds."""
    return 25 if flops < 1e9 else 9 if flops < 1e11 else 5


def per_row(context, width, out, rows, dtype):
    layer, z, x, g = inputs(context, width, out, ((rows,), (rows,)), dtype)
    a = jnp.ones((rows, context * width), dtype)
    b = jnp.ones((context * width, out), dtype)
    orders = typing.get_args(_contract.Order)
    tried = {"einsum": one_einsum} | {order: forced(order) for order in orders}
    methods = {"ours": ours, **tried}
    if rows * width * out <= MOST_WEIGHTS:
        methods["built"] = built
    for title, arguments, transform, plain in (
        ("forward", (layer, z, x), lambda f: f, (product, a, b)),
        ("with gradient", (layer, z, x, g), with_gradient, (products, a, b, g)),
    ):
        calls = {
            name: functools.partial(jax.jit(transform(method)), *arguments)
            for name, method in methods.items()
        }
        calls["product"] = functools.partial(jax.jit(plain[0]), *plain[1:])
        seconds = take_turns(calls, rounds=rounds_for(rows * context * width * out))
        best = min(tried, key=lambda name: Quartiles.of(seconds[name]).median)
        row = {
            "K, C_in, C, N": f"{context}, {width}, {out}, {rows}",
            "dtype": dtype,
            "pass": title,
            "ours / ms": Quartiles.of(1e3 * seconds["ours"]),
            "ours / product": ratio(seconds, "ours", "product"),
            "ours / best order": ratio(seconds, "ours", best),
            "best order": best,
        }
        if "built" in methods:
            row["built / ours"] = ratio(seconds, "built", "ours")
        for name in (name for name in ("ours", "einsum", "built") if name in methods):
            memory = temporary_mebibytes(transform(methods[name]), *arguments)
            row[f"{name} / MiB"] = round(memory, 1)
        yield row


def grouped(contexts, points, context, width, out, dtype):
    """Each context for many points, against the same contexts repeated for each."""
    batches = (contexts, 1), (contexts, points)
    layer, z, x, g = inputs(context, width, out, batches, dtype)
    repeated = jnp.repeat(z, points, axis=1)
    for title, transform, extra in (
        ("forward", lambda f: f, ()),
        ("with gradient", with_gradient, (g,)),
    ):
        ours_jitted, built_jitted = (
            jax.jit(transform(f)) for f in (ours, lambda *a: built_on_rows(*a))
        )
        calls = {
            "grouped": functools.partial(ours_jitted, layer, z, x, *extra),
            "per row": functools.partial(ours_jitted, layer, repeated, x, *extra),
            "built": functools.partial(built_jitted, layer, repeated, x, *extra),
        }
        seconds = take_turns(calls, rounds=9)
        yield {
            "contexts x points": f"{contexts} x {points}",
            "K, C_in, C": f"{context}, {width}, {out}",
            "pass": title,
            "grouped / ms": Quartiles.of(1e3 * seconds["grouped"]),
            "per row / grouped": ratio(seconds, "per row", "grouped"),
            "built / grouped": ratio(seconds, "built", "grouped"),
        }


def built_on_rows(layer, z, x):
    flat = built(layer, z.reshape(-1, z.shape[-1]), x.reshape(-1, x.shape[-1]))
    return flat.reshape(*x.shape[:-1], -1)


def size(text):
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=size, action="append", help="K,C_in,C,N")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    rows = []
    for sizes in options.size or SIZES:
        rows.extend(per_row(*sizes, options.dtype))
        gc.collect()
    report("hyper_linear", rows)
    if not options.size:
        report("hyper_linear_grouped", list(grouped(16, 256, 16, 256, 256, "float32")))
