"""Minibatches of arrays that need not fit into memory, in an order that a key fixes."""

import dataclasses
import functools
import mmap
from collections.abc import Iterator
from typing import Any, final

import jax
import numpy as np

from pyrox_ppl.infer._arrays import check_key, digest
from pyrox_ppl.infer._content_key import ByParts, Same


@final
@dataclasses.dataclass(frozen=True)
class MinibatchLoader(ByParts):
    """The rows of some arrays in batches, each row once an epoch, in random order.

    The order depends only on the key, the epoch and the step: batch 17 of epoch 3 is
    the same in another process, whatever was read before it. An array may be anything
    with ``shape``, ``dtype`` and slices (``numpy.memmap``, a zarr or HDF5 array): only
    the rows of a batch are read.

    Rows on disk are read fastest in blocks of neighbours. With ``block_size=1`` all
    rows are permuted, which takes 4 to 8 bytes of memory a row. With a larger
    `block_size` the blocks are permuted, `blocks_at_once` of them are read together,
    and the rows in these are permuted. That is as fast as reading in sequence, and
    nearly as random where the order on disk means little.

    **Shapes**: a batch is a tuple of arrays ``(batch_size, ...)``, one for each given.
    The rows left over at the end of an epoch, fewer than a batch, are not used in it;
    they are others in each epoch.

    Args:
        arrays: The arrays, with the same number of rows.
        batch_size: Rows of a batch.
        rng_key: Fixes the order.
        block_size: How many neighbouring rows stay together when the order is drawn.
        blocks_at_once: How many blocks are read and mixed together; it has an effect
            only with a `block_size` above 1.
        shuffle: False keeps the order on disk (to evaluate on held-out data).

    Raises:
        TypeError: If `rng_key` is no key.
        ValueError: If there are no arrays, if their lengths differ, if a batch is
            larger than they are, or if a size is no positive integer.

    Example:
        >>> import jax, numpy as np
        >>> from pyrox_ppl.infer import MinibatchLoader
        >>> x = np.arange(10.0)
        >>> loader = MinibatchLoader((x, 2 * x), 4, rng_key=jax.random.key(0))
        >>> loader.num_rows, loader.steps_per_epoch
        (10, 2)
        >>> [[a.shape for a in batch] for batch in loader.epoch(0)]
        [[(4,), (4,)], [(4,), (4,)]]
    """

    arrays: tuple[Any, ...]
    batch_size: int
    _: dataclasses.KW_ONLY
    rng_key: jax.Array
    block_size: int = 1
    blocks_at_once: int = 64
    shuffle: bool = True

    def __post_init__(self) -> None:
        check_key(self.rng_key, "MinibatchLoader(arrays, batch_size, rng_key=...)")
        if not self.arrays:
            raise ValueError("MinibatchLoader needs at least one array, and got none.")
        lengths = [array.shape[0] for array in self.arrays]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"the arrays have {lengths} rows: give arrays of equal length."
            )
        for name in ("batch_size", "block_size", "blocks_at_once"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}.")
        if self.batch_size > lengths[0]:
            raise ValueError(
                f"batch_size is {self.batch_size}, and there are {lengths[0]} rows: "
                "give a smaller batch_size."
            )

    @property
    def num_rows(self) -> int:
        """The number of rows of all data: the ``size`` of their plate."""
        return self.arrays[0].shape[0]

    @property
    def steps_per_epoch(self) -> int:
        """The number of whole batches."""
        return self.num_rows // self.batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
        """The batches of an epoch.

        Args:
            number: Which epoch, from 0.
            start: How many batches to skip; their rows are not read.
        """
        return map(self.rows, self.numbers(number, start))

    def numbers(self, number: int, start: int = 0) -> Iterator[np.ndarray]:
        """The numbers of the rows of each batch of an epoch, as in :meth:`epoch`."""
        rows = np.zeros(0, np.int64)
        skip, left = start * self.batch_size, self.steps_per_epoch - start
        for group in self._groups(number):
            if skip >= len(group):
                skip -= len(group)
                continue
            rows = np.concatenate([rows, group[skip:]]) if len(rows) else group[skip:]
            skip = 0
            while len(rows) >= self.batch_size and left > 0:
                yield rows[: self.batch_size]
                rows = rows[self.batch_size :]
                left -= 1

    def rows(self, numbers: np.ndarray | range) -> tuple[np.ndarray, ...]:
        """The rows of these numbers of every array, in their order."""
        numbers = np.asarray(numbers)
        if all(type(array) is np.ndarray for array in self.arrays):
            return tuple(array.take(numbers, axis=0) for array in self.arrays)
        # Files are read fastest in ascending order.
        order = np.argsort(numbers, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return tuple(_take(array, numbers[order])[back] for array in self.arrays)

    def content_parts(self) -> tuple:
        """What a compiled model that reads the loader depends on.

        The arrays count by identity: to compare their contents would take as long as to
        read all data, and a model reads how many rows there are.
        """
        arrays = tuple(Same(array) for array in self.arrays)
        sizes = self.batch_size, self.block_size, self.blocks_at_once
        return arrays, Same(self.rng_key), sizes, self.shuffle

    def describe(self) -> dict[str, str]:
        """What decides the batches: the contents of the arrays, and their order."""
        contents = {f"array {i}": digest(a) for i, a in enumerate(self.arrays)}
        order = (
            digest(self.rng_key),
            self.batch_size,
            self.block_size,
            self.blocks_at_once,
            self.shuffle,
        )
        return {**contents, "order": " ".join(str(part) for part in order)}

    @functools.cached_property
    def _seeds(self) -> list[int]:
        """The words of the key, on the host: a device would first finish its steps."""
        return np.asarray(jax.random.key_data(self.rng_key)).tolist()

    def _groups(self, number: int) -> Iterator[np.ndarray]:
        """The numbers of the rows in the order of an epoch, group by group."""
        n = self.num_rows
        if not self.shuffle:
            for first in range(0, n, self.batch_size):
                yield np.arange(first, min(first + self.batch_size, n))
            return
        rng = np.random.Generator(np.random.Philox([*self._seeds, number]))
        if self.block_size == 1:
            dtype = np.int32 if n < 2**31 else np.int64
            order = np.arange(n, dtype=dtype)
            rng.shuffle(order)
            for first in range(0, n, self.batch_size):
                yield order[first : first + self.batch_size]
            return
        blocks = rng.permutation(-(-n // self.block_size))
        for first in range(0, len(blocks), self.blocks_at_once):
            chosen = blocks[first : first + self.blocks_at_once, None] * self.block_size
            rows = (chosen + np.arange(self.block_size)[None, :]).reshape(-1)
            yield rng.permutation(rows[rows < n])


def _take(array: Any, rows: np.ndarray) -> np.ndarray:
    if hasattr(array, "oindex"):  # zarr, whose plain indexing takes no list of rows
        return np.asarray(array.oindex[rows])
    taken = np.asarray(array[rows])
    mapped = getattr(array, "_mmap", None)
    if (
        mapped is not None
        and array.mode in ("r", "r+")
        and hasattr(mmap, "MADV_DONTNEED")
    ):
        # Pages that were read count as memory of this process until they are given
        # back. Nothing is lost: what was written to a shared page is in the file.
        mapped.madvise(mmap.MADV_DONTNEED)
    return taken


def held_out_batches(held_out: Any) -> Iterator[Any]:
    """The batches of a loader, or some arrays as the only batch."""
    is_loader = isinstance(held_out, MinibatchLoader)
    return held_out.epoch(0) if is_loader else iter([held_out])


def describe_held_out(held_out: Any) -> Any:
    """What decides those batches."""
    return held_out.describe() if isinstance(held_out, MinibatchLoader) else held_out
