"""Draws in double precision, a block of rows at a time: memory is bounded."""

from collections.abc import Iterator

import numpy as np

ELEMENTS = 2**18  # 2 MiB: arrays beyond the cache take four times as long


def row_blocks(
    draws: np.ndarray, event_ndims: int = 0
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks ``(draws, rows, *event)`` of the rows, all row axes made one.

    A block may share memory with the draws: do not write to it.

    Args:
        draws: All draws, ``(draws, *rows, *event)``.
        event_ndims: The number of axes of an event.

    Yields:
        Which of the rows the block holds, and the block.
    """
    event = draws.shape[draws.ndim - event_ndims :]
    flat = draws.reshape(len(draws), -1, *event)
    size = max(1, ELEMENTS // (len(draws) * int(np.prod(event))))
    for start in range(0, flat.shape[1], size):
        where = slice(start, start + size)
        yield where, np.asarray(flat[:, where], dtype=np.float64)
