"""The loop of every run: a segment, a commit, until all steps are done."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from pyrox_ppl._divergence import warn_of_divergence
from pyrox_ppl.infer._arrays import (
    check_key,
    from_numpy,
    is_key,
    is_sharded,
    stored_as,
    strong,
    to_numpy,
)
from pyrox_ppl.infer.resumable._fingerprint import Fingerprint, check
from pyrox_ppl.infer.resumable._store import RunStore


class Segment(NamedTuple):
    """What a segment makes, to be committed together.

    Attributes:
        state: The state after the segment, a tree of arrays.
        progress: How far the run has come: ``steps``, and what the kind of run adds;
            the loop adds ``seconds``. With a true ``stopped`` the run ends before its
            last step.
        rows: The values that the segment collected, by name.
    """

    state: Any
    progress: dict[str, Any]
    rows: dict[str, Any]


class Run(NamedTuple):
    """What differs between the kinds of run.

    Attributes:
        start: The state before the first step, a tree of arrays.
        progress: The progress before the first step.
        total: The number of steps.
        rows: The final shape and dtype of everything that is collected, by name.
        axis: The axis along which the rows grow.
        block: How many entries a whole segment adds.
        segment: Makes the next segment from a state and a progress. It may write on
            the progress bar.
        stable: Whether the run leaves out steps that are not finite.
    """

    start: Any
    progress: dict[str, Any]
    total: int
    rows: dict[str, Any]
    axis: int
    block: int
    segment: Callable[[Any, dict[str, Any], tqdm], Segment]
    stable: bool = False


def complete(
    run: Run,
    *,
    path: str | Path | None,
    fingerprint: Callable[[], Fingerprint],
    allow_other_environment: bool,
    progress_bar: bool,
) -> Segment:
    """Run the segments that are missing at a path, or all in memory if it is None.

    Returns:
        The last state and progress, and all collected rows.

    Raises:
        ValueError: If the run at `path` was begun with something else, or is damaged.
    """
    if path is None:
        opened: Any = contextlib.nullcontext(_InMemory(run))
    else:
        opened = _on_disk(Path(path), run, fingerprint(), allow_other_environment)
    with (
        opened as record,
        tqdm(
            total=run.total,
            initial=record.progress["steps"],
            disable=not progress_bar,
            unit="step",
        ) as bar,
    ):
        state, progress = record.begin(), record.progress
        # A run that an older version began does not say how long it took.
        before = None if progress["steps"] else 0.0
        warned = bool(progress["steps"]) and _warn(run, record)
        while progress["steps"] < run.total and not progress.get("stopped"):
            begin, before = time.perf_counter(), progress.get("seconds", before)
            state, progress, rows = run.segment(state, progress, bar)
            # What is in the progress is committed, so all processes add up.
            if before is not None:
                seconds = before + time.perf_counter() - begin
                progress = {**progress, "seconds": seconds}
            state = record.commit(state, progress, rows)
            bar.update(progress["steps"] - bar.n)
            if not warned and not np.isfinite(rows.get("loss", np.zeros(1))[-1]).all():
                warned = _warn(run, record)
        return Segment(state, progress, record.rows())


def _warn(run: Run, record: "_InMemory | _OnDisk") -> bool:
    """Warn if the losses so far are those of a fit that diverged."""
    if "loss" not in run.rows:
        return False
    losses = np.asarray(record.rows()["loss"])
    return warn_of_divergence(losses.T, run.total, stable=run.stable)


def check_call(call: str, rng_key: Any, *, commits: bool = True) -> None:
    """Check the key, and that one process alone commits.

    Args:
        call: The function with its arguments in order, as an error shows it.
        rng_key: What the user passed as the key.
        commits: Whether the run commits to a path.
    """
    check_key(rng_key, call)
    if commits and jax.process_count() > 1:
        name = call.partition("(")[0]
        raise ValueError(
            f"{name} works in one process, and jax.process_count() is "
            f"{jax.process_count()}: processes that are killed at different moments "
            "would continue from different commits. Start it without "
            "jax.distributed.initialize, or use CompiledMCMC or jax.jit(svi.update), "
            "which commit nothing."
        )


class _InMemory:
    """A run that is kept nowhere else."""

    def __init__(self, run: Run) -> None:
        self.progress = run.progress
        self._run = run
        self._segments: list[dict[str, Any]] = []

    def begin(self) -> Any:
        """The state from which to go on."""
        return self._run.start

    def commit(self, state: Any, progress: dict[str, Any], rows: dict[str, Any]) -> Any:
        """Keep the rows, and return the state."""
        self._segments.append(rows)
        return state

    def rows(self) -> dict[str, Any]:
        """All rows that were collected."""
        rows = {
            name: np.concatenate([to_numpy(one[name]) for one in self._segments])
            for name in self._run.rows
        }
        return {n: from_numpy(rows[n], like) for n, like in self._run.rows.items()}


class _OnDisk:
    """A run in a store of plain arrays, seen as JAX's trees."""

    def __init__(self, run: Run, store: RunStore) -> None:
        self._run, self._store = run, store
        leaves, structure = jax.tree.flatten(run.start)
        arrays = store.state()
        if [(a.shape, a.dtype.name) for a in arrays] != [stored_as(x) for x in leaves]:
            raise ValueError(
                f"{store.path}: the state on disk has other arrays than the run would "
                "have now: start again under a new path. Nothing was changed."
            )
        pairs = zip(arrays, leaves, strict=True)
        state = jax.tree.unflatten(structure, [from_numpy(a, b) for a, b in pairs])
        self.progress, self._state = store.progress, [state]

    def begin(self) -> Any:
        """The state from which to go on, which is held nowhere else."""
        return self._state.pop()

    def commit(self, state: Any, progress: dict[str, Any], rows: dict[str, Any]) -> Any:
        """Commit a segment, and return the state as a resumed run would load it."""
        arrays = {name: to_numpy(value) for name, value in rows.items()}
        self._store.commit(progress, _arrays(state), arrays)
        return jax.tree.map(_as_loaded, state)

    def rows(self) -> dict[str, Any]:
        """All rows that were committed."""
        rows = self._store.read()
        return {n: from_numpy(rows[n], like) for n, like in self._run.rows.items()}


@contextlib.contextmanager
def _on_disk(
    path: Path, run: Run, fingerprint: Fingerprint, allow_other_environment: bool
) -> Iterator[_OnDisk]:
    """Open the run at a path if there is one that fits, else begin it."""
    # An empty directory is as good as none.
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        with RunStore.open(path) as store:
            check(store.fingerprint, fingerprint, path, allow_other_environment)
            yield _OnDisk(run, store)
    else:
        with RunStore.begin(
            path,
            fingerprint=fingerprint._asdict(),
            progress=run.progress,
            state=_arrays(run.start),
            fields={name: stored_as(like) for name, like in run.rows.items()},
            axis=run.axis,
            block=run.block,
        ) as store:
            yield _OnDisk(run, store)


def _as_loaded(leaf: Any) -> jax.Array:
    """A leaf as a resumed run would load it; one that is so already is not copied."""
    is_plain = isinstance(leaf, jax.Array) and not (is_key(leaf) or is_sharded(leaf))
    return leaf if is_plain and not leaf.weak_type else strong(leaf)


def _arrays(tree: Any) -> list[np.ndarray]:
    return [to_numpy(leaf) for leaf in jax.tree.leaves(tree)]
