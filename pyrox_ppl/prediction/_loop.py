"""A loop over draws inside one ``jit``, which brings results to the host in chunks."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from tqdm.auto import tqdm

# The most memory that one chunk of results may take on the device, in bytes.
CHUNK_BYTES = 2**26


def keys_of_draws(rng_key: PRNGKeyArray, number: int) -> jax.Array:
    """A key for every draw, the one that NumPyro's ``Predictive`` gives it."""
    return jax.random.split(rng_key, number) if number > 1 else rng_key[None]


def even_size(number: int, most: int) -> int:
    """The size of a part, if as few parts as possible have at most `most` entries.

    All parts have one shape, so that they need one program: the last begins earlier and
    overlaps the one before, by as little as possible.
    """
    parts = max(1, math.ceil(number / max(1, min(number, most))))
    return math.ceil(number / parts)


def shapes_of_one(draws: Any) -> Any:
    """The shapes of one draw, of a pytree with a leading axis of draws.

    To slice a draw off would compile a small program for every shape.
    """

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)

    return jax.tree.map(one, draws)


def bytes_of(result: Any) -> int:
    """The size of arrays, or of their shapes from ``jax.eval_shape``."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(result))


def map_draws(
    one: Callable[..., Any],
    draws: Any,
    number: int,
    *,
    consume: Callable[[Any], None] | None = None,
    description: str = "",
    progress_bar: bool = False,
) -> Any:
    """Evaluate a function at every draw, one after the other.

    On a CPU this is fastest and lightest: the arrays of one draw stay in the cache, and
    matrix products are not batched. The function is compiled once.

    Args:
        one: ``one(draw)`` -> a pytree of arrays.
        draws: A pytree of arrays with a leading axis of draws.
        number: The length of that axis.
        consume: If given, ``one(draw)`` returns a pair: what to keep, and what is
            passed on in chunks ``consume(chunk)``, arrays with a leading axis of draws
            that are not kept. It sees every draw once.
        description: What the progress bar says.
        progress_bar: Whether to show one, if it takes more than two seconds.

    Returns:
        The results as NumPy arrays with a leading axis of draws.
    """
    leaves, treedef = jax.tree.flatten(draws)
    leaves = jax.device_put(leaves)
    one = jax.jit(one)  # traced once, for its shapes and for the loop
    result = jax.eval_shape(one, shapes_of_one(jax.tree.unflatten(treedef, leaves)))
    kept = result if consume is None else result[0]
    size = even_size(number, CHUNK_BYTES // max(1, bytes_of(result)))
    loop = jax.jit(lambda chunk: jax.lax.map(one, jax.tree.unflatten(treedef, chunk)))
    out = jax.tree.map(lambda leaf: np.empty((number, *leaf.shape), leaf.dtype), kept)
    starts = tqdm(
        range(0, number, size), desc=description, disable=not progress_bar, delay=2.0
    )
    for start in starts:
        # The last chunk begins earlier, so that all have one shape.
        begin = min(start, number - size)
        where = slice(begin, begin + size)
        chunk = loop(leaves if size == number else [leaf[where] for leaf in leaves])
        if consume is not None:
            chunk, passed = chunk
            fresh = start - begin
            consume(jax.tree.map(lambda leaf: np.asarray(leaf)[fresh:], passed))  # noqa: B023 - called at once
        for whole, part in zip(
            jax.tree.leaves(out), jax.tree.leaves(chunk), strict=True
        ):
            whole[where] = np.asarray(part)
    return out
