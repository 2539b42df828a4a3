"""A loop over draws inside one ``jit``, which brings results to the host in chunks."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from tqdm.auto import tqdm

from pyrox_ppl._loop_convolutions import with_fast_convolutions
from pyrox_ppl.prediction._flat_bits import with_flat_bits

# The most memory that chunks of results may take on the device, in bytes.
CHUNK_BYTES = 2**26
_AT_A_TIME = 2


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


def run_ahead[Result](results: Iterable[Result], number: int = 1) -> Iterator[Result]:
    """Yield results some steps late: the next ones are computed in the meantime."""
    started: deque[Result] = deque()
    for result in results:
        started.append(result)
        if len(started) > number:
            yield started.popleft()
    while started:
        yield started.popleft()


class DrawLoop:
    """A function evaluated at every draw, one after the other, in one program.

    On a CPU this is fastest and lightest: the arrays of one draw stay in the cache, and
    matrix products are not batched. Two chunks of draws run at a time, since most
    operations of one draw use a single core.
    """

    def __init__(
        self, one: Callable[..., Any], draws: Any, number: int, *others: Any
    ) -> None:
        """Compile the function.

        Args:
            one: ``one(draw, *others)`` -> a pytree of arrays.
            draws: A pytree of arrays with a leading axis of draws.
            number: The length of that axis.
            *others: Other arrays, of the shapes that `run` will be given.
        """
        leaves, treedef = jax.tree.flatten(draws)
        self._leaves = jax.device_put(leaves)
        self._number = number
        first = shapes_of_one(jax.tree.unflatten(treedef, self._leaves))
        flat, self._shapes = with_flat_bits(one, first, *others)
        # As many chunks again wait to be read.
        most = CHUNK_BYTES // (2 * _AT_A_TIME) // max(1, bytes_of(self._shapes))
        self._size = even_size(number, most)

        @jax.jit
        @with_fast_convolutions
        def program(leaves: list[jax.Array], *others: Any) -> Any:
            draws = jax.tree.unflatten(treedef, leaves)
            return jax.lax.map(lambda draw: flat(draw, *others), draws)

        # Compiled here, because threads do not see JAX's settings of a `with` block.
        self._program = program.lower(self._chunk(0), *others).compile()

    def run(
        self,
        *others: Any,
        consume: Callable[[Any], None] | None = None,
        out: Any = None,
        description: str = "",
        progress_bar: bool = False,
    ) -> Any:
        """Evaluate the function at every draw.

        Args:
            *others: The other arguments of the function.
            consume: If given, the function returns a pair: what to keep, and what is
                passed on in chunks ``consume(chunk)``, arrays with a leading axis of
                draws that are not kept. It sees every draw once.
            out: The result of an earlier run, to be overwritten.
            description: What the progress bar says.
            progress_bar: Whether to show one, if it takes more than two seconds.

        Returns:
            The results as NumPy arrays with a leading axis of draws.
        """
        if out is None:
            kept = self._shapes if consume is None else self._shapes[0]
            out = jax.tree.map(
                lambda leaf: np.empty((self._number, *leaf.shape), leaf.dtype), kept
            )
        starts = tqdm(
            range(0, self._number, self._size),
            desc=description,
            disable=not progress_bar,
            delay=2.0,
        )
        at_a_time = self._at_a_time()
        with ThreadPoolExecutor(at_a_time) as pool:
            started = self._start(pool, starts, others)
            for begin, fresh, running in run_ahead(started, at_a_time):
                chunk = running.result()
                if consume is not None:
                    chunk, passed = chunk
                    consume(jax.tree.map(lambda leaf: np.asarray(leaf)[fresh:], passed))  # noqa: B023 - called at once
                    del passed
                for whole, part in zip(
                    jax.tree.leaves(out), jax.tree.leaves(chunk), strict=True
                ):
                    whole[begin : begin + self._size] = np.asarray(part)
                    del part
                del chunk, running  # before the device begins another
        return out

    def _chunk(self, begin: int) -> list[jax.Array]:
        if self._size == self._number:
            return self._leaves
        return [leaf[begin : begin + self._size] for leaf in self._leaves]

    def _at_a_time(self) -> int:
        """How many chunks run at a time; over several devices they may deadlock."""
        program = self._program
        shardings = jax.tree.leaves((program.input_shardings, program.output_shardings))
        return _AT_A_TIME if all(len(s.device_set) == 1 for s in shardings) else 1

    def _start(
        self, pool: Executor, starts: Iterable[int], others: tuple
    ) -> Iterator[tuple[int, int, Future]]:
        """Start the chunks: where each begins, how many of it are old, its results."""
        nans, infs = jax.config.jax_debug_nans, jax.config.jax_debug_infs

        def run(part: list[jax.Array]) -> Any:
            # Settings of a `with` block are those of its own thread.
            with jax.debug_nans(nans), jax.debug_infs(infs):
                return jax.block_until_ready(self._program(part, *others))

        for start in starts:
            # The last chunk begins earlier, so that all have one shape.
            begin = min(start, self._number - self._size)
            yield begin, start - begin, pool.submit(run, self._chunk(begin))


def map_draws(one: Callable[..., Any], draws: Any, number: int, **options: Any) -> Any:
    """Evaluate ``one(draw)`` at every draw; see :class:`DrawLoop`."""
    return DrawLoop(one, draws, number).run(**options)
