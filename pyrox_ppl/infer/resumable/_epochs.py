"""Steps over the batches of a loader: their programs, and the end of each epoch."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.infer import SVI
from tqdm.auto import tqdm

from pyrox_ppl._loop_convolutions import with_fast_convolutions
from pyrox_ppl.infer._arrays import copy_arrays
from pyrox_ppl.infer._mutable_state import evaluate_with_state, make_update
from pyrox_ppl.infer.compiled._svi_params import materialize_params
from pyrox_ppl.infer.data._loader import MinibatchLoader, held_out_batches
from pyrox_ppl.infer.resumable._loop import Segment

# A call of a compiled program costs as much as a short step, so that several steps on
# small batches share one.
_MOST_STEPS = 64
_MOST_BYTES = 1 << 19


class Programs(NamedTuple):
    """The compiled programs of a run. Each takes the arrays of the keyword arguments.

    Attributes:
        advance: From a state, stacked batches and their number, the state after a step
            on each, and their losses. It takes the memory of the state.
        evaluate: From a state, a batch and a key, the loss.
    """

    advance: Callable
    evaluate: Callable


def make_programs(stable: bool, svi: SVI, arguments_of: Callable) -> Programs:
    once = materialize_params(svi)
    update = make_update(once, stable=stable)

    def advance(state: Any, batches: Any, number: Any, data: list) -> Any:
        # Traced once: for the type of the loss, and again for the loop.
        @partial(jax.jit, inline=True)
        def take_step(state: Any, batch: list, data: list) -> Any:
            return update(state, *batch, **arguments_of(data)[1])

        def step(i: Any, carry: Any) -> Any:
            state, losses = carry
            state, loss = take_step(state, [rows[i] for rows in batches], data)
            return state, losses.at[i].set(loss)

        first = [rows[0] for rows in batches]
        _, loss = jax.eval_shape(take_step, state, first, data)
        losses = jnp.zeros(len(batches[0]), loss.dtype)
        if len(losses) == 1:
            return step(0, (state, losses))
        # The number is an input, so that a last, shorter piece of an epoch or a segment
        # runs the same machine code.
        return lax.fori_loop(0, number, step, (state, losses))

    def evaluate(state: Any, batch: Any, rng_key: Any, data: list) -> Any:
        (held_out_kwargs,), kwargs = arguments_of(data)
        kwargs = {**kwargs, **held_out_kwargs}

        def once(key: Any) -> Any:
            at_key = state._replace(rng_key=key)
            return evaluate_with_state(svi, at_key, *batch, **kwargs)

        # The least loss by a single draw would be one that fits by chance.
        return jax.lax.map(once, jax.random.split(rng_key, 16)).mean()

    advance, evaluate = map(with_fast_convolutions, (advance, evaluate))
    return Programs(jax.jit(advance, donate_argnums=0), jax.jit(evaluate))


def num_at_once(batch: tuple[np.ndarray, ...]) -> int:
    """How many steps a call takes: many on small batches, whose steps are short."""
    size = sum(rows.nbytes for rows in batch)
    return max(1, min(_MOST_STEPS, _MOST_BYTES // max(size, 1)))


def read_batches(
    loader: MinibatchLoader, numbers: list[np.ndarray], length: int
) -> tuple[np.ndarray, ...]:
    """The batches with these numbers of rows, stacked to a length."""
    rows = loader.rows(np.concatenate(numbers))
    shape = len(numbers), loader.batch_size
    return fill(
        tuple(array.reshape(*shape, *array.shape[1:]) for array in rows), length
    )


def fill(batches: tuple[np.ndarray, ...], length: int) -> tuple[np.ndarray, ...]:
    """Stacked batches with the last one repeated up to a length."""
    missing = length - len(batches[0])
    if not missing:
        return batches
    return tuple(
        np.concatenate([rows, np.repeat(rows[-1:], missing, 0)]) for rows in batches
    )


@dataclasses.dataclass
class Epochs:
    """Steps over batches, and the end of each epoch.

    The state is that after the last step and, with held-out data, a copy of that after
    the best epoch.
    """

    loader: MinibatchLoader
    held_out: Any
    patience: int | None
    total: int
    size: int
    at_once: int
    advance: Callable
    evaluate: Callable
    # Kept between segments: the loader shuffles anew for each iterator.
    batches: Iterator[tuple[Any, int]] | None = None
    following: tuple[Any, int] | None = None

    def segment(self, state: Any, progress: dict[str, Any], bar: tqdm) -> Segment:
        """Steps up to the next multiple of the size of a segment, or the last."""
        progress = {**progress, "held_out": list(progress["held_out"])}
        losses: list[Any] = []
        last, *best = state
        if self.batches is None:
            self.batches = self._batches(progress["steps"])
            self.following = next(self.batches, None)
        while self.following is not None:
            batches, number = self.following
            last, new = self.advance(last, batches, np.int32(number))
            losses.append((new, number))
            progress["steps"] += number
            bar.update(number)
            # Before anything waits for these steps.
            self.following = next(self.batches, None)
            if progress["steps"] % self.loader.steps_per_epoch == 0:
                best = self._end_epoch(last, best, progress)
            if progress["steps"] % self.size == 0 or progress["stopped"]:
                break
        rows = np.concatenate([np.asarray(new)[:number] for new, number in losses])
        bar.set_postfix_str(_postfix(rows, progress), refresh=False)
        return Segment((last, *best), progress, {"loss": rows})

    def _batches(self, done: int) -> Iterator[tuple[Any, int]]:
        """Batches from a step on with their number, in pieces of epoch and segment."""
        while done < self.total:
            epoch, start = divmod(done, self.loader.steps_per_epoch)
            batches = self.loader.numbers(epoch, start)
            end = done + self.loader.steps_per_epoch - start
            while done < end:
                number = min(self.at_once, end - done, self.size - done % self.size)
                numbers = list(itertools.islice(batches, number))
                yield read_batches(self.loader, numbers, self.at_once), number
                done += number

    def _end_epoch(self, state: Any, best: list, progress: dict[str, Any]) -> list:
        """Evaluate the held-out loss, and keep the state at which it was least."""
        epoch = progress["steps"] // self.loader.steps_per_epoch - 1
        if self.held_out is None:
            progress["best_epoch"] = epoch
            return best
        batches = held_out_batches(self.held_out)
        loss = float(np.mean([float(self.evaluate(state, b)) for b in batches]))
        least = min(filter(math.isfinite, progress["held_out"]), default=math.inf)
        progress["held_out"].append(loss)
        if math.isfinite(loss) and loss < least:
            progress["best_epoch"], best = epoch, [copy_arrays(state)]
        since = epoch - progress["best_epoch"]
        progress["stopped"] = self.patience is not None and since >= self.patience
        return best


def _postfix(losses: np.ndarray, progress: dict[str, Any]) -> str:
    text = f"loss: {float(losses.mean()):.4f}"
    if progress["held_out"]:
        text += f", held out: {progress['held_out'][-1]:.4f}"
    return text
