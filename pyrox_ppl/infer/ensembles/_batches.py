"""The minibatches of an ensemble: each member sees the rows in an order of its own."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pyrox_ppl.infer.data._loader import MinibatchLoader
from pyrox_ppl.infer.resumable._epochs import fill, read_batches


def member_loaders(args: tuple, num_members: int) -> list[MinibatchLoader]:
    """A loader for every member, with an order of its own; none for whole data."""
    if not any(isinstance(argument, MinibatchLoader) for argument in args):
        return []
    if len(args) > 1:
        raise ValueError(
            "a MinibatchLoader holds all positional arguments of the model, and there "
            f"are {len(args)} of them: put arrays with a row for every datum into the "
            "loader, and pass the others by keyword."
        )
    loader: MinibatchLoader = next(iter(args))
    keys = [jax.random.fold_in(loader.rng_key, m) for m in range(num_members)]
    return [dataclasses.replace(loader, rng_key=key) for key in keys]


def first_batches(loaders: list[MinibatchLoader]) -> tuple[np.ndarray, ...]:
    """The first batch of every member, with an axis of members; empty for whole data.

    A member starts with its own batch, because the state of a network's layers does.
    """
    each = [next(loader.epoch(0)) for loader in loaders]
    return tuple(np.stack(rows) for rows in zip(*each, strict=True))


def repeat_batch(
    batch: tuple[np.ndarray, ...], num_members: int, at_once: int
) -> tuple[np.ndarray, ...]:
    """One batch in place of those of every member and step, for its shapes."""
    rows = fill(tuple(rows[None] for rows in batch), at_once)
    return tuple(np.stack([each] * num_members) for each in rows)


class Pieces:
    """The steps that one call of the program takes, and their batches."""

    def __init__(
        self, loaders: list[MinibatchLoader], total: int, size: int, at_once: int
    ) -> None:
        self._loaders = loaders
        self._total, self._size, self._at_once = total, size, at_once
        # Kept between segments: a loader shuffles anew for each iterator.
        self._epoch = -1
        self._iterators: list[Iterator] = []

    def until_next_commit(self, done: int) -> Iterator[tuple[int, Any]]:
        """The pieces up to the next multiple of the size of a segment, or the last."""
        end = min(self._total, done - done % self._size + self._size)
        while done < end:
            number = min(self._at_once, end - done)
            yield number, self._stack(done, number) if self._loaders else None
            done += number

    def _stack(self, done: int, number: int) -> tuple[np.ndarray, ...]:
        """Batches along the axes of members and steps; the last one fills up."""
        steps = [self._numbers(step) for step in range(done, done + number)]
        of_members = zip(self._loaders, zip(*steps, strict=True), strict=True)
        stacked = [
            read_batches(loader, list(numbers), self._at_once)
            for loader, numbers in of_members
        ]
        return tuple(np.stack(rows) for rows in zip(*stacked, strict=True))

    def _numbers(self, step: int) -> list[np.ndarray]:
        """The numbers of the rows of every member at a step."""
        epoch, place = divmod(step, self._loaders[0].steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._iterators = [one.numbers(epoch, place) for one in self._loaders]
        return [next(one) for one in self._iterators]
